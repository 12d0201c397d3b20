// Shows what the coordinator tells over its feed. Nothing that a device said is ever taken for markup: all of it
// becomes the text of a node.

import { Chart } from "./chart.js";
import * as format from "./format.js";

const MAX_POINTS = 2000; // of a curve in this page; then every second one goes
const OVER = ["ended", "aborted"];
const RECENT_S = 60; // so long an error counts as news

const sessions = new Map();
const rows = new Map();
let chosen = decodeURIComponent(location.hash.slice(1));
let toldAt = null; // of the last news: its time, and this page's clock then
let now = 0;
let isDrawing = false;

const at = (id) => document.getElementById(id);

const charts = {
  accuracy: new Chart(at("chart-accuracy"), { format: (value) => `${+(100 * value).toFixed(1)} %`, top: 1 }),
  loss: new Chart(at("chart-loss"), {
    format: format.number,
    tick: format.mark,
    mayBeLog: true,
  }),
  seconds: new Chart(at("chart-seconds"), { format: format.seconds, isSpiky: true }),
  bytes: new Chart(at("chart-bytes"), { format: (value) => format.bytes(value), tick: (value) => format.bytes(value, true) }),
};

// ---------------------------------------------------------------- the feed

function listen() {
  const feed = new EventSource("/api/events");
  feed.addEventListener("everything", (event) => take(JSON.parse(event.data), true));
  feed.addEventListener("update", (event) => take(JSON.parse(event.data), false));
  feed.addEventListener("error", () => {
    setLive("off", "no connection, trying again");
    toldAt = null;
    if (feed.readyState === EventSource.CLOSED) setTimeout(listen, 3000); // refused; else the browser tries by itself
  });
}

function take(told, isEverything) {
  setLive("on", "live");
  toldAt = { told: told.now, clock: performance.now() };
  const names = new Set(told.sessions.map((session) => session.name));
  for (const name of [...sessions.keys()]) if (!names.has(name)) sessions.delete(name);
  for (const session of told.sessions) {
    const known = sessions.get(session.name);
    if (known !== undefined && !isEverything) {
      for (const [name, points] of Object.entries(session.curves)) {
        session.curves[name] = extend(known.curves[name], points);
      }
    }
    sessions.set(session.name, session);
  }
  askToDraw();
}

function askToDraw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(draw);
}

// What is told of a wait is when it began: while it lasts there may be no news.
setInterval(() => {
  if (toldAt !== null && current()?.wait) askToDraw();
}, 1000);

function extend(curve, points) {
  for (const point of points) {
    while (curve.length > 0 && curve.at(-1)[0] >= point[0]) curve.pop();
    curve.push(point);
  }
  return curve.length > MAX_POINTS ? curve.filter((_, index) => index % 2 === 0 || index === curve.length - 1) : curve;
}

function setLive(kind, text) {
  at("live").className = `live ${kind}`;
  setText(at("live"), text);
}

// ---------------------------------------------------------------- the page

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function current() {
  if (sessions.has(chosen)) return sessions.get(chosen);
  const all = [...sessions.values()];
  return all.findLast((session) => !OVER.includes(session.phase)) ?? all.at(-1);
}

function draw() {
  isDrawing = false;
  if (toldAt !== null) now = toldAt.told + (performance.now() - toldAt.clock) / 1000;
  const session = current();
  if (session === undefined) return;
  drawHead(session);
  drawFigures(session);
  charts.accuracy.show([session.curves.accuracy]);
  charts.loss.show([session.curves.loss]);
  charts.seconds.show([session.curves.seconds]);
  charts.bytes.show([session.curves.wire, session.curves.float32]);
  drawDevices(session);
  drawIncidents(session);
  drawSettings(session);
}

function drawHead(session) {
  document.title = `${session.name}: ${session.phase} – EdgeNewton`;
  const select = at("session");
  select.hidden = sessions.size < 2;
  at("name").hidden = !select.hidden;
  setText(at("name"), session.name);
  const names = [...sessions.keys()].reverse();
  if ([...select.options].map((option) => option.value).join("\n") !== names.join("\n")) {
    select.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  select.value = session.name;
  setText(at("phase"), session.phase);
  at("phase").className = `pill ${session.phase}`;
  setText(at("privacy"), session.privacy.text);
  drawStanding(session);
}

// What goes on, in one line: how far it is, or for whom it waits.
function drawStanding(session) {
  const isKnown = session.phase === "training" && session.done > 0;
  const of = session.run_steps === null ? "" : ` of ${format.count(session.run_steps)}`;
  const reason = session.phase === "gathering" ? session.reason.replace(/(^|; )waiting for .*$/, "") : session.reason;
  setText(at("reason"), isKnown ? `step ${format.count(session.done)}${of}${left(session)}` : reason);
  at("wait").hidden = session.wait === null;
  if (session.wait === null) return;
  setText(at("wait"), waitText(session.wait));
  at("wait").title = session.wait.devices.join(", ");
}

function left(session) {
  return session.wait === null && session.left_s > 0 ? `, ${format.duration(session.left_s)} left` : "";
}

function waitText({ devices, more, since }) {
  const seconds = since === null ? "" : ` ${format.duration(Math.max(0, now - since))}`;
  const short = format.shorten(devices);
  const names = devices.map((name) => short.get(name));
  if (more > 0) names.push(`${format.count(more)} ${names.length > 0 ? "more" : more === 1 ? "device" : "devices"}`);
  const last = names.pop();
  return `waits${seconds} for ${names.length > 0 ? `${names.join(", ")} and ` : ""}${last}`;
}

function drawFigures(session) {
  setText(at("step"), session.step === null ? "–" : format.count(session.done));
  const every = session.every > 1 ? `, ${session.every} batches an exchange` : "";
  const form = session.form ? `, moves in ${session.form}` : "";
  const pace = session.batches_per_s > 0 ? format.rate(session.batches_per_s) : lasted(session);
  setText(at("pace"), `${pace.replace(" ", "\u00a0")}${every}${form}`);
  at("pace").title = session.cadence;
  drawProgress(session);
  setText(at("accuracy-of"), session.averages ? "Accuracy (averaged weights)" : "Accuracy");
  at("weights").hidden = !session.averages;
  setText(at("accuracy"), format.percent(session.accuracy));
  const [step, best] = session.best ?? [];
  setText(at("best"), session.best ? `best ${format.percent(best)} at step ${format.count(step)}` : "not tried yet");
  setText(at("loss"), format.number(session.loss));
  const skipped = session.skipped > 0 ? `, ${format.count(session.skipped)} batches skipped` : "";
  setText(at("samples"), session.samples > 0 || skipped ? `${format.count(session.samples)} samples${skipped}` : "");
  setText(at("count"), `${session.members}`);
  const late = session.left_out > 0 ? `, late ${format.count(session.left_out)} ×` : "";
  setText(at("places"), `of ${session.places} places${late}`);
  const total = session.received + session.sent;
  setText(at("wire"), format.bytes(total));
  setText(at("directions"), `${format.bytes(session.received, true)} in, ${format.bytes(session.sent, true)} out`);
  const saved = Math.max(0, session.saved);
  setText(at("saved"), saved > 0 ? format.bytes(saved) : "–");
  const part = saved > 0 ? `${session.codec}: ${((total + saved) / total).toFixed(1)} times smaller` : session.codec;
  setText(at("codec"), session.masked ? `${part}; masked: sums only` : part);
}

function drawProgress(session) {
  const isKnown = session.run_steps !== null && session.done > 0;
  at("progress").hidden = at("done").hidden = !isKnown;
  if (!isKnown) return;
  at("progress").max = session.run_steps;
  at("progress").value = session.done;
  setText(at("done"), `of ${format.count(session.run_steps)}${left(session)}`);
}

function lasted(session) {
  if (session.began_at === null) return "not begun yet";
  return `after ${format.seconds((session.ended_at ?? now) - session.began_at)}`;
}

function drawDevices(session) {
  const body = at("devices");
  const names = new Set(session.devices.map((device) => device.device));
  for (const [name, row] of rows) {
    if (!names.has(name)) {
      row.remove();
      rows.delete(name);
    }
  }
  const short = format.shorten(session.devices.map((device) => device.device));
  session.devices.forEach((device, index) => {
    let row = rows.get(device.device);
    if (row === undefined) {
      row = makeRow();
      rows.set(device.device, row);
    }
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
    drawDevice(row, device, short.get(device.device), session);
  });
  at("no-devices").hidden = session.devices.length > 0;
  const hidden = session.members + session.gone - session.devices.length;
  at("more-devices").hidden = hidden <= 0;
  setText(at("more-devices"), `and ${hidden} more`);
}

function makeRow() {
  const row = document.createElement("tr");
  for (const label of ["Device", "State", "Step", "Loss", "Lag", "Link now", "Link in all", "Saved"]) {
    const cell = document.createElement("td");
    cell.dataset.label = label;
    cell.append(document.createElement("span"), document.createElement("small"));
    row.append(cell);
  }
  return row;
}

function drawDevice(row, device, name, session) {
  const isOver = ["finished", "gone"].includes(device.state);
  row.className = isOver ? "over" : "";
  const set = (index, text, below = "", kind = "") => {
    const [main, small] = row.children[index].children;
    setText(main, text);
    setText(small, below);
    small.className = kind;
  };
  const isOld = device.last_error_at !== null && now > device.last_error_at + RECENT_S;
  set(0, name, device.last_error, isOld ? "error old" : "error");
  row.children[0].children[0].title = device.device;
  const isAwaited = device.awaited_since !== null;
  const silent = device.silent_since === null ? "" : `silent for ${format.duration(now - device.silent_since)}`;
  const asideS = isOver ? 0 : (device.set_aside_until ?? 0) - now;
  const healed = device.healings > 0 ? `healed ${format.count(device.healings)} ×` : "";
  const aside = asideS > 0 ? `not waited for: ${format.duration(asideS)}` : "";
  set(1, isAwaited && device.state === "active" ? "waited for" : device.state, aside || silent || healed);
  row.children[1].children[0].className = `state ${isAwaited ? "awaited" : ""} ${device.state}`;
  const missed = {
    late: device.left_out,
    "set aside": device.set_aside,
    skipped: device.skipped,
    unlike: device.unlike,
  };
  const times = Object.entries(missed).filter(([, count]) => count > 0);
  set(2, device.step === null ? "–" : format.count(device.step + 1), times.map(([what, count]) => `${what} ${format.count(count)} ×`).join(", "));
  const untold = session.masked ? "masked" : session.privacy.budget === null ? null : "not told";
  const spent = device.epsilon === null ? "" : `epsilon ${+device.epsilon.toPrecision(3)}`;
  set(3, untold ?? format.number(device.loss), spent);
  const behind = device.lag_steps > 1 ? `${format.count(device.lag_steps)} steps` : format.seconds(device.lag_s);
  const awaited = isAwaited ? format.duration(Math.max(0, now - device.awaited_since)) : "";
  set(4, awaited || (isOver || device.step === null ? "–" : behind));
  set(5, isOver ? "–" : `${format.bytes(device.received_per_s)}/s in`, isOver ? "" : `${format.bytes(device.sent_per_s)}/s out`);
  set(6, `${format.bytes(device.received)} in`, `${format.bytes(device.sent)} out`);
  set(7, session.saved > 0 ? format.bytes(device.saved) : "–");
}

function drawIncidents(session) {
  const list = at("incidents");
  const key = JSON.stringify(session.incidents);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(
    ...session.incidents.map((incident) => {
      const item = document.createElement("li");
      const kinds = { "left out": "late", phase: incident.text.split(":")[0] };
      item.className = kinds[incident.kind] ?? incident.kind;
      const time = document.createElement("time");
      time.textContent = format.clock(incident.time_s);
      const step = document.createElement("span");
      step.className = "at";
      step.textContent = incident.step === null ? "" : `step ${format.count(incident.step)}`;
      const text = document.createElement("span");
      text.className = "text";
      text.textContent = sentence(incident);
      item.append(time, step, text);
      return item;
    }),
  );
}

function sentence({ kind, device, text }) {
  if (kind === "phase" || kind === "cadence" || kind === "record") return text;
  const who = device === "" ? "somebody" : device;
  const verbs = { joined: "joined", left: "left", healing: "heals", refused: "was refused", unlike: "is unlike the others" };
  if (kind === "joined") return `${who} joined`;
  return kind in verbs ? `${who} ${verbs[kind]}: ${text}` : `${who} ${text}`;
}

function drawSettings(session) {
  const list = at("settings");
  const entries = { ...session.settings, ...session.options, model: session.model };
  const key = JSON.stringify(entries);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(
    ...Object.entries(entries).map(([name, value]) => {
      const entry = document.createElement("div");
      const term = document.createElement("dt");
      term.textContent = name.replaceAll("_", " ");
      const text = document.createElement("dd");
      text.textContent = value === null ? "–" : String(value);
      entry.append(term, text);
      return entry;
    }),
  );
}

at("session").addEventListener("change", (event) => {
  chosen = event.target.value;
  location.hash = encodeURIComponent(chosen);
  draw();
});

fetch("/api/state")
  .then((answer) => answer.json())
  .then((told) => setText(at("version"), `EdgeNewton ${told.version}`))
  .catch(() => {});
listen();
