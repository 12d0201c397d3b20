// The vertical scale of a chart: where its values lie between 0, at the bottom, and 1, and which of them are marked.

const MANY_TIMES = 30; // values of which the largest is so many times the smallest can only be told apart by their powers
const ROUND = [1, 2, 5, 10];

// The next round number: above a value, or not above it.
export function round(value, isUp) {
  const power = 10 ** Math.floor(Math.log10(value));
  const part = value / power;
  const factor = isUp ? ROUND.find((known) => known >= part * 0.999) : ROUND.findLast((known) => known <= part * 1.001);
  return factor * power;
}

export function spansDecades(values) {
  const positive = values.filter((value) => value > 0);
  // A loss of 0 does not fit on a scale of powers; it is drawn at its bottom.
  if (positive.length === 0 || values.some((value) => value < 0)) return false;
  return smallestOf(positive) * MANY_TIMES <= Math.max(...positive);
}

// largest: of the values that are to be seen. The scale includes 0.
export function linear(values, largest) {
  const lowest = Math.min(0, ...values);
  const top = Math.max(0, largest);
  const step = round((top - lowest) / 4, true);
  const bottom = Math.floor(lowest / step) * step;
  const ticks = [];
  for (let value = bottom; value < top + 0.999 * step; value += step) ticks.push(value);
  return { ticks, at: (value) => clamp((value - bottom) / (ticks.at(-1) - bottom)) };
}

export function logarithmic(values) {
  const positive = values.filter((value) => value > 0);
  const bottom = round(smallestOf(positive), false);
  const top = round(Math.max(...positive), true);
  const decades = Math.log10(top / bottom);
  const every = Math.max(1, Math.ceil(decades / 6));
  const factors = decades < 2.5 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = Math.floor(Math.log10(bottom)); power <= Math.ceil(Math.log10(top)); power += 1) {
    if (power % every !== 0) continue;
    ticks.push(...factors.map((factor) => factor * 10 ** power));
  }
  const isInside = (value) => value >= bottom * 0.999 && value <= top * 1.001;
  return { ticks: ticks.filter(isInside), at: (value) => (value > 0 ? clamp(Math.log10(value / bottom) / decades) : 0) };
}

// Rare values far below all others would take all the room.
function smallestOf(positive) {
  return positive.toSorted((a, b) => a - b)[Math.floor(0.01 * positive.length)];
}

function clamp(part) {
  return Math.min(1, Math.max(0, part));
}
