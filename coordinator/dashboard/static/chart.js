// A line chart in SVG: one or two series over the steps, with the value under the pointer. The second one is dashed and
// lies above the first, so that both are seen where they are equal.

import * as scale from "./scale.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 58, right: 10, top: 10, bottom: 24 };

function make(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

export class Chart {
  // figure: holds a figcaption with an output; format: a value as text; tick: the same on the axis; top: the largest
  // value, if it is known; isSpiky: rare values that are much larger than the others are cut off; mayBeLog: values that
  // span decades are drawn on a logarithmic scale.
  constructor(figure, { format, tick = format, top = null, isSpiky = false, mayBeLog = false }) {
    this.figure = figure;
    this.output = figure.querySelector("output");
    this.format = format;
    this.tick = tick;
    this.top = top;
    this.isSpiky = isSpiky;
    this.mayBeLog = mayBeLog;
    this.series = [];
    this.pointer = null;
    this.svg = make("svg", { class: "chart", role: "img" });
    figure.append(this.svg);
    new ResizeObserver(() => this.draw()).observe(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.point(null));
  }

  show(series) {
    this.series = series;
    this.draw();
  }

  point(x) {
    this.pointer = x;
    this.draw();
  }

  draw() {
    const width = this.svg.clientWidth;
    const height = this.svg.clientHeight;
    if (!width || !height) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const points = this.series.flat();
    const label = this.figure.querySelector("h2").textContent.trim().replace(/\s+/g, " ");
    if (points.length === 0) {
      this.svg.setAttribute("aria-label", `${label}: nothing yet`);
      this.output.textContent = "";
      this.svg.replaceChildren(make("text", { class: "none", x: width / 2, y: height / 2 }, "nothing yet"));
      return;
    }
    const first = Math.min(...points.map(([step]) => step));
    const last = Math.max(...points.map(([step]) => step), first + 1);
    const values = points.map(([, value]) => value);
    const isLog = this.mayBeLog && scale.spansDecades(values);
    const top = this.top ?? (this.largest(values) || 1);
    const { ticks, at } = isLog ? scale.logarithmic(values) : scale.linear(values, top);
    const kind = this.figure.querySelector(".scale");
    if (kind !== null) kind.hidden = !isLog;
    const x = (step) => MARGIN.left + ((step - first) / (last - first)) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => height - MARGIN.bottom - at(value) * (height - MARGIN.top - MARGIN.bottom);
    const parts = [];
    for (const value of ticks) {
      parts.push(make("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }));
      parts.push(make("text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, this.tick(value)));
    }
    const stepX = Math.max(1, scale.round((last - first) / Math.max(2, Math.floor(width / 110)), true));
    for (let step = Math.ceil(first / stepX) * stepX; step <= last; step += stepX) {
      const anchor = x(step) > width - MARGIN.right - 12 ? "end" : "middle";
      const text = step.toLocaleString("en-GB");
      parts.push(make("text", { x: x(step), y: height - 7, "text-anchor": anchor }, text));
    }
    this.series.forEach((line, index) => {
      if (line.length === 0) return;
      const path = line.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`);
      const name = "ab"[index];
      if (this.series.length === 1 && line.length > 1) {
        const bottom = isLog ? height - MARGIN.bottom : y(0);
        const area = `M${x(line[0][0])},${bottom}L${path.join("L")}L${x(line.at(-1)[0])},${bottom}Z`;
        parts.push(make("path", { class: "area", d: area }));
      }
      parts.push(make("path", { class: `line ${name}`, d: `M${path.join("L")}` }));
    });
    const chosen = this.chosen(x);
    if (this.pointer !== null) {
      const under = x(chosen[0][0]);
      parts.push(make("line", { class: "cross", x1: under, x2: under, y1: MARGIN.top, y2: height - MARGIN.bottom }));
    }
    chosen.forEach(([step, value], index) => {
      parts.push(make("circle", { class: `dot ${"ab"[index]}`, cx: x(step), cy: y(value), r: index ? 2.5 : 4.5 }));
    });
    const texts = chosen.map(([, value]) => this.format(value)).join(" · ");
    this.output.textContent = this.pointer === null ? texts : `step ${count(chosen[0][0])}: ${texts}`;
    this.svg.setAttribute("aria-label", `${label} at step ${chosen[0][0]}: ${texts}`);
    this.svg.replaceChildren(...parts);
  }

  largest(values) {
    const all = Math.max(...values);
    if (!this.isSpiky) return all;
    const usual = values.toSorted((a, b) => a - b)[Math.floor(0.95 * (values.length - 1))];
    return Math.min(all, 2 * usual);
  }

  // Of each series, the point under the pointer, or the last one.
  chosen(x) {
    return this.series
      .filter((line) => line.length > 0)
      .map((line) => {
        if (this.pointer === null) return line.at(-1);
        return line.reduce((best, point) =>
          Math.abs(x(point[0]) - this.pointer) < Math.abs(x(best[0]) - this.pointer) ? point : best,
        );
      });
  }
}

function count(step) {
  return step.toLocaleString("en-GB");
}
