// What the model says, and what is known of it.
import { element } from "/page/inputs.js";

const byId = (id) => document.getElementById(id);
const MOST = 10;

const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const number = (value) => String(Number(Number(value).toPrecision(5)));
const milliseconds = (value) => `${number(value.toFixed(value < 10 ? 2 : 0))} ms`;

function bar(name, share, text, { chosen = false, fall = false, mark = null } = {}) {
  const fill = element("div", { className: fall ? "fill fall" : "fill" });
  fill.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  const track = element("div", { className: "track", "aria-hidden": "true" }, fill);
  if (mark !== null) {
    const line = element("div", { className: "mark" });
    line.style.left = `${100 * mark}%`;
    track.append(line);
  }
  const title = element("span", { className: chosen ? "name chosen" : "name", title: name }, name);
  return element("li", {}, title, track, element("span", { className: "number" }, text));
}

function labelled(said) {
  const chosen = new Set(said.labels);
  const sorted = Object.entries(said.probabilities).sort((one, other) => other[1] - one[1]);
  const bars = sorted.map(([name, share]) =>
    bar(name, share, percent(share), { chosen: chosen.has(name), mark: said.threshold ?? null }));
  const list = element("ul", { className: "bars", "aria-label": "Probabilities" }, ...bars.slice(0, MOST));
  const headline = element("p", { className: "headline" }, said.labels.join(", ") || "no label");
  if (bars.length <= MOST) return [headline, list];
  const more = element("button", { type: "button" }, `All ${bars.length} classes`);
  more.addEventListener("click", () => {
    list.append(...bars.slice(MOST));
    more.remove();
  });
  return [headline, list, more];
}

function table(rows) {
  const lines = rows.map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)));
  return element("table", {}, element("tbody", {}, ...lines));
}

// The outputs of another kind of task, as rows of a table.
function outputs(said) {
  return Object.entries(said.outputs).map(([name, value]) => [name, [value].flat(Infinity).map(number).join(", ")]);
}

export function showAnswer(card, said, waited) {
  let told = [];
  if (said.probabilities) told = labelled(said);
  else if (said.numbers) told = [table(Object.entries(said.numbers).map(([name, value]) => [name, number(value)]))];
  else told = [table(outputs(said))];
  if (said.left_out.length) {
    told.push(element("p", { className: "quiet" }, `Left out: ${said.left_out.join(", ")}.`));
  }
  byId("said").replaceChildren(...told);
  byId("brief").textContent = brief(said);
  byId("importance").replaceChildren(...importance(card, said));
  const { input, model } = said.milliseconds;
  byId("latency").textContent =
    `Input ${milliseconds(input)}, model ${milliseconds(model)}, answer here after ${milliseconds(waited)}.`;
}

// The answer in a few words, which a narrow window shows at its foot.
function brief(said) {
  if (!said.probabilities) {
    const told = said.numbers ? Object.entries(said.numbers).map(([name, value]) => [name, number(value)]) : outputs(said);
    return told.length ? told[0].join(": ") : "Prediction";
  }
  const [label] = said.labels;
  return label === undefined ? "no label" : `${label}: ${percent(said.probabilities[label])}`;
}

function importance(card, said) {
  const drops = Object.entries(said.importance ?? {});
  if (!drops.length) return [];
  const most = Math.max(...drops.map(([, drop]) => Math.abs(drop)), 1e-9);
  const share = card.decision === "argmax" || card.decision === "threshold";
  // Without the sign of a zero.
  const text = (drop) => (share ? (100 * drop).toFixed(1).replace(/^-0\.0$/, "0.0") : number(drop));
  const what = {
    argmax: "points that the probability of the label falls",
    threshold: "points that a probability changes at most",
    numbers: "change at most, in standard deviations of the labels",
  }[card.decision] ?? "change of the outputs at most";
  return [
    element("h3", {}, "What each input is worth here"),
    element("p", { className: "quiet" }, `When it is left out: ${what}.`),
    element(
      "ul",
      { className: "bars", "aria-label": "What each input is worth" },
      ...drops.map(([name, drop]) => bar(name, Math.abs(drop) / most, text(drop), { fall: drop < 0 })),
    ),
  ];
}

export function showCard(card, drawingUrl) {
  const { scores, latency, graph, parity, versions } = card;
  const rows = [["Task", `${card.task}, ${card.kind}`]];
  rows.push([card.decision === "numbers" ? "Numbers" : "Classes", few(card.classes)]);
  if (card.threshold !== null) rows.push(["Threshold", number(card.threshold)]);
  for (const one of card.inputs) rows.push([`Input ${one.name}`, one.meaning || one.expected]);
  const metric = scores.metric ?? "score";
  if (scores.test) rows.push([`Test ${metric}`, `${number(scores.test.score)} on ${scores.test.samples} samples`]);
  for (const [name, found] of Object.entries(scores.unimodal ?? {})) {
    rows.push([`Test ${metric} of ${name} alone`, number(found.test ?? NaN)]);
  }
  for (const [name, found] of Object.entries(scores.importance?.modalities ?? {})) {
    rows.push([`Worth of ${name}`, `${metric} falls by ${number(found.mean)} when it is shuffled (${scores.importance.samples} samples)`]);
  }
  for (const [batch, found] of Object.entries(latency.onnxruntime ?? {})) {
    rows.push([`Latency, ${batch.replace("_", " ")}`, `${milliseconds(found.median_ms)} median, ${milliseconds(found.p99_ms)} p99, ${latency.threads} threads, ${latency.hardware?.processor ?? ""}`]);
  }
  if (graph.bytes) rows.push(["Size", `${(graph.bytes / 1e6).toFixed(2)} MB, ${graph.nodes} nodes, opset ${graph.opset}`]);
  if (parity.agree !== undefined) rows.push(["Compared with torch", `${parity.agree} of ${parity.compared} test samples decided the same`]);
  for (const [name, precision] of Object.entries(card.targets)) rows.push([`Target ${name}`, precision]);
  if (versions.bmnas) rows.push(["Made with", Object.entries(versions).map(([name, found]) => `${name} ${found}`).join(", ")]);
  byId("facts").replaceChildren(table(rows));
  byId("architecture").hidden = !card.drawing && !card.architecture;
  byId("drawing").replaceChildren(
    card.drawing
      ? element(
        "a", { href: drawingUrl, target: "_blank", rel: "noopener" },
        element("img", { src: drawingUrl, alt: `Drawing of the network, ${card.architecture}` }),
      )
      : element("p", {}, card.architecture),
  );
}

function few(names) {
  return names.length > 20 ? `${names.slice(0, 20).join(", ")}, … (${names.length})` : names.join(", ");
}
