// Numbers and times as people read them.

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function bytes(count, isCoarse = false) {
  let unit = 0;
  let value = Math.abs(count);
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || isCoarse || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${count < 0 ? "−" : ""}${value.toFixed(digits)} ${UNITS[unit]}`;
}

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(1);
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(digits);
}

// A round number, as the marks of a scale are.
export function mark(value) {
  const exact = +value.toPrecision(3);
  return exact !== 0 && (Math.abs(exact) < 1e-3 || Math.abs(exact) >= 1e6) ? exact.toExponential() : `${exact}`;
}

export function count(value) {
  return value === null || value === undefined ? "–" : value.toLocaleString("en-GB");
}

export function percent(value) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
}

export function seconds(value) {
  if (value < 0.0005) return "0 ms";
  if (value < 0.9995) return `${(1000 * value).toFixed(0)} ms`;
  if (value < 120) return `${value.toFixed(1)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

export function duration(value) {
  if (value < 99.5) return `${value.toFixed(0)} s`;
  const minutes = Math.round(value / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.round(value / 3600);
  return hours < 48 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function rate(perSecond) {
  if (perSecond < 0.1) return `${+(60 * perSecond).toPrecision(2)} batches/min`;
  return `${perSecond.toFixed(perSecond < 1 ? 2 : perSecond < 100 ? 1 : 0)} batches/s`;
}

export function clock(time) {
  return new Date(1000 * time).toLocaleTimeString("en-GB");
}

// A name that is longer than `length` characters without its middle: names differ at their ends. Of several names that
// would become alike, none is shortened.
export function shorten(names, length = 24) {
  const times = new Map();
  for (const name of names) times.set(middle(name, length), (times.get(middle(name, length)) ?? 0) + 1);
  return new Map(names.map((name) => [name, times.get(middle(name, length)) > 1 ? name : middle(name, length)]));
}

function middle(name, length) {
  const characters = [...name];
  if (characters.length <= length) return name;
  const head = Math.floor((length - 1) / 2);
  return `${characters.slice(0, head).join("")}…${characters.slice(head + 1 - length).join("")}`;
}
