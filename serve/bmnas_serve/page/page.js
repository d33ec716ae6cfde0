// The page of a server: choose inputs, see what the model says of them.
import { showAnswer, showCard } from "/page/answer.js";
import { element, InputCard } from "/page/inputs.js";

const byId = (id) => document.getElementById(id);
const state = { name: "", version: "", cards: [], asked: 0, timer: 0 };

async function getJson(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new Error("The server does not answer.");
  }
  const said = await response.json();
  if (!response.ok) throw new Error(said.error);
  return said;
}

function problem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

const modelUrl = (end = "") =>
  `/v1/models/${encodeURIComponent(state.name)}${end}?version=${encodeURIComponent(state.version)}`;

const sampleUrl = (name) =>
  modelUrl(`/samples/${byId("sample").value}/${encodeURIComponent(name)}`);

async function showModel(name, version) {
  Object.assign(state, { name, version });
  document.title = name;
  byId("title").textContent = name;
  byId("about").textContent = "";
  byId("main").hidden = true;
  problem("");
  const current = () => state.name === name && state.version === version;
  let card;
  try {
    card = await getJson(modelUrl());
  } catch (error) {
    if (current()) throw error;
  }
  if (!card || !current()) return; // Another model has been chosen meanwhile.
  byId("about").textContent = `${card.task}, ${card.kind}: predicts from ${card.inputs.map((one) => one.name).join(", ")}`;
  byId("samples").hidden = !card.samples;
  byId("sample").max = Math.max(card.samples - 1, 0);
  byId("sample").value = 0;
  byId("count").textContent = `of ${card.samples}, from 0`;
  state.card = card;
  state.cards = card.inputs.map((input) => new InputCard(input, card.samples > 0, sampleUrl, predictSoon));
  byId("inputs").replaceChildren(...state.cards.map((one) => one.element));
  showCard(card, modelUrl("/architecture.svg"));
  byId("curl").textContent = example(card);
  byId("main").hidden = false;
  await Promise.all(state.cards.map((one) => one.showSample()));
  await predict();
}

function example(card) {
  const given = { image: "@picture.png", sound: "@sound.wav", video: "@video.mp4", text: "'some text'" };
  const parts = card.inputs.map((one) => {
    const fields = one.fields?.map((field) => `"${field.name}": ${field.choices ? `"${field.choices[0]}"` : 1}`);
    const value = one.kind === "fields" ? `'{${fields.join(", ")}}'` : (given[one.kind] ?? "@numbers.json");
    return `  -F ${one.name}=${value}`;
  });
  return [`curl ${location.origin}/v1/predict?model=${encodeURIComponent(card.name)}`, ...parts].join(" \\\n");
}

// Waits until nothing has changed for a moment.
function predictSoon() {
  clearTimeout(state.timer);
  state.timer = setTimeout(predict, 250);
}

async function predict() {
  clearTimeout(state.timer);
  const asked = ++state.asked;
  const form = new FormData();
  const query = new URLSearchParams({ model: state.name, version: state.version, explain: "true" });
  let sampled = false;
  for (const one of state.cards) {
    if (one.state === "given") form.append(one.input.name, ...one.part());
    if (one.state === "out") query.append("without", one.input.name);
    sampled ||= one.state === "sample";
  }
  if (sampled) query.set("sample", byId("sample").value);
  const options = { method: "POST" };
  if (![...form.keys()].length && !sampled) {
    nothing(element("p", { className: "quiet" }, "Give at least one input."));
    return;
  }
  if ([...form.keys()].length) options.body = form;
  byId("answer").setAttribute("aria-busy", "true");
  const begun = performance.now();
  try {
    const said = await getJson(`/v1/predict?${query}`, options);
    // A later question has been asked meanwhile.
    if (asked !== state.asked) return;
    showAnswer(state.card, said, performance.now() - begun);
    for (const one of state.cards) if (one.input.kind === "image") one.mark(said.outputs?.box);
  } catch (error) {
    if (asked !== state.asked) return;
    nothing(element("p", { className: "error", role: "alert" }, error.message));
  } finally {
    if (asked === state.asked) byId("answer").removeAttribute("aria-busy");
  }
}

// Shows why there is no prediction.
function nothing(why) {
  byId("said").replaceChildren(why);
  byId("importance").replaceChildren();
  byId("latency").textContent = "";
  byId("brief").textContent = "No prediction";
}

async function showOtherSample(step) {
  const last = Number(byId("sample").max);
  const wanted = Math.round(Number(byId("sample").value)) + step;
  byId("sample").value = step ? (wanted + last + 1) % (last + 1) : Math.min(Math.max(wanted, 0), last);
  await Promise.all(state.cards.map((one) => one.showSample()));
  await predict();
}

async function start() {
  byId("previous").addEventListener("click", () => showOtherSample(-1));
  byId("next").addEventListener("click", () => showOtherSample(1));
  byId("sample").addEventListener("change", () => showOtherSample(0));
  byId("predict").addEventListener("click", predict);
  const { models } = await getJson("/v1/models");
  if (!models.length) throw new Error("No model is served.");
  byId("models").replaceChildren(
    ...models.map((one, place) => element("option", { value: place }, `${one.name}, version ${one.version}`)),
  );
  byId("choose").hidden = models.length < 2;
  const show = () => {
    const { name, version } = models[Number(byId("models").value) || 0];
    return showModel(name, version).catch((error) => problem(error.message));
  };
  byId("models").addEventListener("change", show);
  await show();
}

start().catch((error) => problem(error.message));
