// The playground: asks /api/denoise for an answer by one or two models, draws the canvas after every step, and replays it.
"use strict";
const byId = (id) => document.getElementById(id);
const MASK = "\u2591";
const NUMBERS = ["max_tokens", "diffusion_steps", "block_length", "temperature", "seed"];
// The entropy in nats that has the full colour: that of 20 equally likely tokens.
const FULL_ENTROPY = 3;
const FRAME_MS = 120;
let asking = null;

const headers = () => {
  const key = byId("key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
};

const complain = (text) => {
  byId("problem").textContent = text;
};

const messageOf = async (response) => {
  if (response.status === 401) byId("key").closest("details").open = true;
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answers with the status ${response.status}`;
  }
};

// One model's answer with all its steps; the canvas shows the step that the slider selects.
class Pane {
  constructor(model) {
    this.model = model;
    this.node = byId("pane").content.firstElementChild.cloneNode(true);
    const find = (query) => this.node.querySelector(query);
    [this.status, this.text, this.facts, this.answer] = [".status", ".text", ".facts", ".answer"].map(find);
    [this.slider, this.output, this.play] = [".step", "output", ".play"].map(find);
    find("h2").textContent = model;
    this.found = [];
    this.entropies = [[]];
    this.spans = [];
    this.chosen = null;
    this.end = null;
    this.timer = null;
    this.slider.addEventListener("input", () => this.pause() || this.draw());
    this.play.addEventListener("click", () => (this.timer ? this.pause() : this.replay()));
    this.text.addEventListener("keydown", (event) => this.move(event));
    this.text.addEventListener("pointerdown", (event) => this.choose(this.spans.indexOf(event.target)));
  }

  get steps() {
    return this.entropies.length - 1;
  }

  async ask(body, signal) {
    // Screen readers read out the end, not every step.
    this.status.ariaLive = "off";
    this.status.textContent = "waiting";
    const response = await fetch("/api/denoise", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify({ ...body, model: this.model }),
      signal,
    });
    if (!response.ok) throw new Error(await messageOf(response));
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) {
        const data = event.startsWith("data: ") ? event.slice(6) : "";
        if (data && data !== "[DONE]") this.take(JSON.parse(data));
      }
    }
  }

  take(event) {
    if (event.error) throw new Error(event.error.message);
    if (event.event === "start") this.start(event);
    if (event.event === "step") this.step(event);
    if (event.event === "tokens") this.finish(event);
    if (event.event === "done") {
      this.answer.textContent = event.text;
      this.status.ariaLive = "polite";
      const why = event.finish_reason === "stop" ? "the answer ended" : "the answer fills its length";
      this.status.textContent = `${this.steps} steps; ${why}`;
      this.text.dataset.done = "true";
    }
  }

  start({ gen_length, diffusion_steps, block_length, remasking, prompt_tokens }) {
    this.about = `${prompt_tokens} tokens asked, ${gen_length} answered in ${diffusion_steps} steps, blocks of ${block_length}, ${remasking}`;
    this.status.textContent = this.about;
    this.found = Array.from({ length: gen_length }, () => null);
    this.spans = this.found.map(() => {
      const span = document.createElement("span");
      span.className = "token masked";
      span.textContent = MASK;
      return span;
    });
    this.text.replaceChildren(...this.spans);
  }

  step({ step, found, filled, entropy }) {
    this.entropies[step] = new Map(entropy);
    for (const [at, text, confidence] of found) {
      this.found[at] = { step, text, confidence, entropy: this.entropies[step].get(at) };
    }
    for (const at of filled) this.found[at] = { step, text: "", filled: true };
    const follows = Number(this.slider.value) === Number(this.slider.max);
    this.slider.max = step;
    this.slider.disabled = false;
    if (follows) this.slider.value = step;
    this.status.textContent = `step ${step}: ${this.found.filter((token) => !token).length} masked; ${this.about}`;
    this.draw();
  }

  finish({ tokens, end }) {
    tokens.forEach(([text, part], at) => {
      if (this.found[at] && !this.found[at].filled) Object.assign(this.found[at], { text, part });
    });
    this.end = end;
    this.play.disabled = false;
    this.draw();
  }

  // The state of a token after a step.
  at(index, step) {
    const token = this.found[index];
    if (token && token.step <= step) return { ...token, isNew: token.step === step };
    // The event of the next step has the prediction from the state after this one.
    const entropies = this.entropies[step + 1] || this.entropies[step] || new Map();
    return { masked: true, entropy: entropies.get && entropies.get(index) };
  }

  draw() {
    const step = Number(this.slider.value);
    this.output.textContent = step;
    this.spans.forEach((span, index) => {
      const token = this.at(index, step);
      span.textContent = token.masked ? MASK : shown(token);
      const behind = !token.masked && (token.filled || (this.end !== null && index >= this.end));
      span.className = ["token", token.masked && "masked", token.isNew && "new", behind && "behind", index === this.chosen && "chosen"]
        .filter(Boolean).join(" ");
      span.style.setProperty("--share", share(token).toFixed(3));
      span.title = facts(token, index);
    });
    this.tell();
  }

  tell() {
    const step = Number(this.slider.value);
    this.facts.textContent = this.chosen === null ? "Choose a token to see its numbers." : facts(this.at(this.chosen, step), this.chosen);
  }

  choose(index) {
    if (index < 0 || index >= this.spans.length) return;
    this.chosen = index;
    this.draw();
  }

  move(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!by || !this.spans.length) return;
    event.preventDefault();
    const from = this.chosen === null ? (by < 0 ? 1 : -1) : this.chosen;
    this.choose(Math.min(this.spans.length - 1, Math.max(0, from + by)));
  }

  replay() {
    this.slider.value = 0;
    this.play.textContent = "Pause";
    this.draw();
    this.timer = setInterval(() => {
      if (Number(this.slider.value) >= this.steps) return this.pause();
      this.slider.value = Number(this.slider.value) + 1;
      this.draw();
    }, FRAME_MS);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.textContent = "Replay";
  }
}

// The strength of a token's colour, which shows how unsure the model is of the token.
const share = (token) => {
  const byEntropy = byId("colour").value === "entropy" || token.masked;
  const value = byEntropy ? (token.entropy || 0) / FULL_ENTROPY : 1 - (token.confidence ?? 1);
  return Math.min(1, Math.max(0, value));
};

const shown = ({ text, part, filled }) => {
  if (filled) return "\u00b7";
  if (part && part[1] > 1) return part[0] === 1 ? text : "";
  const visible = text.trim() === "" ? text.replaceAll(" ", "\u00b7") : text;
  return visible.replaceAll("\n", "\u21b5\n");
};

const facts = (token, index) => {
  if (token.filled) return `position ${index + 1}: behind the end, not predicted`;
  const entropy = token.entropy === undefined ? "" : `, entropy ${token.entropy.toFixed(3)} nats`;
  if (token.masked) return `position ${index + 1}: masked${entropy}`;
  const part = token.part && token.part[1] > 1 ? `, part ${token.part[0]} of ${token.part[1]}` : "";
  return `position ${index + 1}: ${JSON.stringify(token.text)}${part}, confidence ${token.confidence.toFixed(3)}${entropy}, found at step ${token.step}`;
};

let panes = [];

const scale = () => {
  const byEntropy = byId("colour").value === "entropy";
  byId("low").textContent = byEntropy ? "0 nats" : "confidence 1";
  byId("high").textContent = byEntropy ? `${FULL_ENTROPY} nats and more` : "confidence 0";
  panes.forEach((pane) => pane.draw());
};

const request = () => {
  const system = byId("system").value.trim();
  const messages = system ? [{ role: "system", content: system }] : [];
  const body = { messages: [...messages, { role: "user", content: byId("prompt").value }] };
  for (const name of NUMBERS) {
    if (byId(name).value !== "") body[name] = Number(byId(name).value);
  }
  if (byId("remasking").value) body.remasking = byId("remasking").value;
  return body;
};

const ask = async (event) => {
  event.preventDefault();
  if (asking) return;
  complain("");
  if (!byId("model-a").value) await load();
  const models = [byId("model-a").value, byId("model-b").value].filter(Boolean);
  if (!models.length) return;
  panes.forEach((pane) => pane.pause());
  panes = models.map((model) => new Pane(model));
  byId("panes").replaceChildren(...panes.map((pane) => pane.node));
  asking = new AbortController();
  [byId("go").disabled, byId("stop").disabled] = [true, false];
  const body = request();
  await Promise.all(panes.map(async (pane) => {
    try {
      await pane.ask(body, asking.signal);
    } catch (error) {
      const stopped = error.name === "AbortError";
      pane.status.textContent = stopped ? `stopped after step ${pane.steps}` : "not answered";
      pane.play.disabled = pane.steps === 0;
      if (!stopped) complain(error.message);
    }
  }));
  asking = null;
  [byId("go").disabled, byId("stop").disabled] = [false, true];
};

const load = async () => {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) return complain(await messageOf(response));
    const names = (await response.json()).data.map((model) => model.id);
    const options = () => names.map((name) => new Option(name, name));
    byId("model-a").replaceChildren(...options());
    byId("model-b").replaceChildren(new Option("none", ""), ...options());
    // The base comes first. Whoever serves an adapter wants to see its answers.
    if (names.length > 1) byId("model-a").selectedIndex = 1;
    complain("");
  } catch (error) {
    complain(`the server can't be reached: ${error.message}`);
  }
};

byId("asking").addEventListener("submit", ask);
byId("stop").addEventListener("click", () => asking && asking.abort());
byId("colour").addEventListener("input", scale);
byId("key").addEventListener("change", load);
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("asking").requestSubmit();
});
scale();
load();
