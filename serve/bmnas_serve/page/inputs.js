// One card for each input: what it is, ways to give it, the bundle's sample, or nothing.
import { record, toWav } from "/page/sound.js";

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const ACCEPT = {
  image: "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff",
  sound: "audio/*",
  video: "video/*",
};
const READ_BY_SERVER = /\.(wav|flac|ogg|oga|opus|mp3|aif|aiff)$/i;
const STATES = { sample: "from the sample", given: "your own", out: "left out" };

export class InputCard {
  constructor(input, hasSamples, sampleUrl, changed) {
    Object.assign(this, { input, hasSamples, sampleUrl, changed });
    this.state = hasSamples ? "sample" : "out";
    this.file = null;
    this.label = element("span", { className: "state" });
    this.error = element("p", { className: "error", role: "alert", hidden: true });
    this.body = element("div", { className: "body" });
    this.sampleButton = element("button", { type: "button" }, "Sample");
    this.outButton = element("button", { type: "button" }, "Leave out");
    this.sampleButton.addEventListener("click", () => this.useSample());
    this.outButton.addEventListener("click", () => this.set("out"));
    const title = element("h3", { id: `input-${input.name}` }, input.name);
    const tools = element("div", { className: "tools" });
    if (hasSamples) tools.append(this.sampleButton);
    if (input.optional) tools.append(this.outButton);
    this.element = element(
      "div",
      { className: "input", role: "group", "aria-labelledby": title.id },
      element("div", {}, title, this.label),
      this.body, this.error, tools,
    );
    this[`make_${input.kind}`]();
    this.show();
  }

  // What is sent for this input: arguments of FormData.append after its name.
  part() {
    if (this.file) return [this.file, this.file.name ?? "recording.wav"];
    if (this.input.kind === "text") return [this.area.value];
    if (this.input.kind === "fields") return [JSON.stringify(this.fields())];
    return [new Blob([this.area.value], { type: "application/json" }), "numbers.json"];
  }

  set(state, told = true) {
    this.state = state;
    this.show();
    if (told) this.changed();
  }

  show() {
    this.label.textContent = ` ${STATES[this.state]}`;
    this.element.classList.toggle("out", this.state === "out");
    this.sampleButton.setAttribute("aria-pressed", String(this.state === "sample"));
    this.outButton.setAttribute("aria-pressed", String(this.state === "out"));
  }

  fail(text) {
    this.error.textContent = text;
    this.error.hidden = !text;
  }

  async useSample() {
    this.set("sample", false);
    await this.showSample();
    this.changed();
  }

  // Shows the bundle's sample, unless the person has given something.
  async showSample() {
    if (this.state !== "sample") return;
    this.fail("");
    this.file = null;
    const url = this.sampleUrl(this.input.name);
    try {
      await this.sampled(url);
    } catch (error) {
      this.fail(`The sample cannot be shown: ${error.message}`);
    }
  }

  // Tells whether it is still that sample which is to be seen: one can type while it comes.
  shows(url) {
    return this.state === "sample" && url === this.sampleUrl(this.input.name);
  }

  give(file) {
    this.fail("");
    this.file = file;
    this.preview(file);
    this.set("given");
  }

  chooser(text) {
    const field = element("input", { type: "file", accept: ACCEPT[this.input.kind] });
    field.setAttribute("aria-label", `${text} for ${this.input.name}`);
    field.addEventListener("change", () => {
      if (field.files.length) this.choose(field.files[0]);
      field.value = "";
    });
    return element("label", { className: "button" }, text, field);
  }

  choose(file) {
    this.give(file);
  }

  make_image() {
    this.frame = element("div", { className: "picture" });
    this.drawButton = element("button", { type: "button" }, "Draw");
    this.drawButton.addEventListener("click", () => this.draw());
    this.body.append(
      this.frame,
      element("div", { className: "tools" }, this.chooser("Choose a picture"), this.drawButton),
      element("p", { className: "quiet" }, `read as ${this.input.height} x ${this.input.width} pixels${this.input.grey ? ", grey" : ""}`),
    );
    this.preview = (file) => this.picture(URL.createObjectURL(file), `${this.input.name}: your picture`);
    this.sampled = (url) => this.picture(url, `${this.input.name} of the sample`);
    for (const kind of ["dragover", "drop"]) {
      this.frame.addEventListener(kind, (event) => {
        event.preventDefault();
        if (event.dataTransfer.files.length) this.choose(event.dataTransfer.files[0]);
      });
    }
  }

  // Marks a box in the picture, corners in its pixels.
  mark(box) {
    this.box = box;
    this.frame?.querySelector("svg")?.remove();
    const image = this.frame?.querySelector("img");
    if (!box || !image?.naturalWidth) return;
    const draw = (tag, properties) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(properties)) made.setAttribute(name, value);
      return made;
    };
    const [left, top, right, bottom] = box;
    const size = `0 0 ${image.naturalWidth} ${image.naturalHeight}`;
    const svg = draw("svg", { viewBox: size, role: "img", "aria-label": "the box in the picture" });
    svg.append(draw("rect", { x: left, y: top, width: right - left + 1, height: bottom - top + 1 }));
    this.frame.append(svg);
  }

  picture(url, alt) {
    const image = element("img", { alt });
    this.box = null;
    image.addEventListener("load", () => {
      this.mark(this.box);
      image.classList.toggle("small", image.naturalHeight < 128);
      if (url.startsWith("blob:")) URL.revokeObjectURL(url);
    });
    this.explain(image, url);
    image.src = url;
    this.frame.replaceChildren(image);
  }

  // Tells why shown has nothing from url: what the server said of a sample, as the browser keeps that to itself.
  explain(shown, url) {
    shown.onerror = async () => {
      const unread = "The browser cannot show this file.";
      this.fail(url.startsWith("blob:") ? unread : await checked(url).then(() => unread, (error) => error.message));
    };
  }

  // A board of the picture's form; what is drawn is white on black, or the other way round.
  draw() {
    this.fail("");
    const height = 280;
    const width = Math.round((height * this.input.width) / this.input.height);
    const board = element("canvas", { width, height, tabIndex: 0 });
    board.setAttribute("aria-label", `Draw ${this.input.name} with a mouse, a pen or a finger`);
    board.setAttribute("role", "img");
    const pen = board.getContext("2d");
    let dark = true;
    const clear = () => {
      pen.fillStyle = dark ? "#000" : "#fff";
      pen.fillRect(0, 0, width, height);
      pen.strokeStyle = dark ? "#fff" : "#000";
      pen.lineWidth = Math.max(Math.min(width, height) / 8, 6);
      pen.lineCap = pen.lineJoin = "round";
    };
    const send = () => board.toBlob((blob) => {
      this.file = new File([blob], "drawing.png", { type: "image/png" });
      this.set("given");
    }, "image/png");
    const place = (event) => {
      const box = board.getBoundingClientRect();
      return [((event.clientX - box.left) * width) / box.width, ((event.clientY - box.top) * height) / box.height];
    };
    board.addEventListener("pointerdown", (event) => {
      board.setPointerCapture(event.pointerId);
      pen.beginPath();
      pen.moveTo(...place(event));
      pen.lineTo(...place(event));
      pen.stroke();
      event.preventDefault();
    });
    board.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      pen.lineTo(...place(event));
      pen.stroke();
    });
    board.addEventListener("pointerup", send);
    const again = element("button", { type: "button" }, "Clear");
    const turn = element("button", { type: "button" }, "Black on white");
    again.addEventListener("click", () => { clear(); send(); });
    turn.addEventListener("click", () => {
      dark = !dark;
      turn.textContent = dark ? "Black on white" : "White on black";
      clear();
      send();
    });
    clear();
    this.frame.replaceChildren(board, element("div", { className: "tools" }, again, turn));
    board.focus();
  }

  make_sound() {
    this.player = element("audio", { controls: true });
    this.player.setAttribute("aria-label", this.input.name);
    this.recordButton = element("button", { type: "button" }, "Record");
    this.recordButton.addEventListener("click", () => this.record());
    const seconds = this.input.seconds.toPrecision(3);
    this.note = element("p", { className: "quiet" }, `the first ${Number(seconds)} s are read`);
    this.body.append(
      this.player,
      element("div", { className: "tools" }, this.chooser("Choose a sound"), this.recordButton),
      this.note,
    );
    if (!navigator.mediaDevices) {
      this.recordButton.disabled = true;
      this.note.textContent += "; a browser records on https and localhost alone";
    }
    this.preview = (file) => { this.player.src = URL.createObjectURL(file); };
    this.sampled = async (url) => {
      this.explain(this.player, url);
      this.player.src = url;
    };
    this.choose = async (file) => {
      try {
        this.give(READ_BY_SERVER.test(file.name) ? file : await toWav(file));
      } catch {
        this.fail("The browser cannot read this sound.");
      }
    };
  }

  async record() {
    if (this.stop) {
      this.stop();
      return;
    }
    this.fail("");
    try {
      const { stop, done } = await record(Math.max(this.input.seconds, 1) + 0.5);
      this.stop = stop;
      this.recordButton.textContent = "Stop";
      this.recordButton.setAttribute("aria-pressed", "true");
      this.give(await done);
    } catch (error) {
      this.fail(`No recording: ${error.message}`);
    } finally {
      this.stop = null;
      this.recordButton.textContent = "Record";
      this.recordButton.setAttribute("aria-pressed", "false");
    }
  }

  make_video() {
    this.frame = element("div", { className: "picture" });
    this.body.append(this.frame, element("div", { className: "tools" }, this.chooser("Choose a video")));
    this.preview = (file) => {
      const video = element("video", { controls: true, muted: true, src: URL.createObjectURL(file) });
      this.frame.replaceChildren(video);
    };
    this.sampled = (url) => {
      const image = element("img", { src: url, alt: `${this.input.name}: the middle frame of the sample` });
      this.explain(image, url);
      this.frame.replaceChildren(image);
    };
  }

  make_text() {
    this.area = element("textarea", { rows: 3 });
    this.area.setAttribute("aria-label", this.input.name);
    this.area.addEventListener("input", () => this.set("given"));
    this.body.append(this.area);
    this.sampled = async (url) => {
      const text = await (await checked(url)).text();
      if (this.shows(url)) this.area.value = text;
    };
  }

  make_numbers() {
    this.make_text();
    this.area.spellcheck = false;
    this.body.append(element("p", { className: "quiet" }, this.input.expected));
  }

  make_fields() {
    this.controls = new Map();
    const box = element("div", { className: "fields" });
    for (const field of this.input.fields) {
      const control = field.choices
        ? element("select", {}, element("option", { value: "" }, "–"), ...field.choices.map((one) => element("option", { value: one }, one)))
        : element("input", { type: "text", inputMode: "decimal", placeholder: "missing" });
      control.addEventListener("input", () => this.set("given"));
      this.controls.set(field.name, control);
      box.append(element("label", {}, field.name, control));
    }
    this.body.append(box);
    this.sampled = async (url) => {
      const values = await (await checked(url)).json();
      if (!this.shows(url)) return;
      for (const [name, control] of this.controls) control.value = values[name] ?? "";
    };
  }

  fields() {
    return Object.fromEntries([...this.controls].map(([name, control]) => [name, control.value || null]));
  }
}

async function checked(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error((await response.json()).error);
  return response;
}
