import { joined } from "./arrays.js";
import { Enhancer } from "./enhancer.js";
import { listenForDrops, listenForKeys } from "./gestures.js";
import { Meters } from "./meters.js";
import { Player } from "./player.js";
import { mono, readRecording } from "./recording.js";
import { Spectrogram } from "./spectrogram.js";
import { prepareTheme } from "./theme.js";
import { clock, fill, save, wordsFor } from "./view.js";

const element = (id) => document.getElementById(id);

/** The right end of the slider of the limit. */
const NO_LIMIT = 41;

const enhancer = new Enhancer();
const meters = new Meters(element);

class Page {
  #layout;
  #player;
  #before;
  #after;
  #recording;
  #microphone = false;
  #turn = Promise.resolve();
  #drawing = new AbortController();

  async start() {
    prepareTheme(element("theme"));
    this.#layout = await enhancer.load();
    const { name, sampleRate, delaySamples } = this.#layout;
    element("model").textContent = `model: ${name}`;
    element("rate").textContent = `${sampleRate / 1000} kHz`;
    this.#player = new Player(enhancer, this.#layout);
    this.#player.onCounts = (counts) => meters.count(counts, sampleRate);
    this.#before = new Spectrogram(element("before"), this.#layout, delaySamples);
    this.#after = new Spectrogram(element("after"), this.#layout);
    enhancer.onFailure = show;
    enhancer.onHops = (hops) => this.#hear(hops);
    this.#listen();
    this.#showSettings();
    this.#showHeard();
    for (const id of ["example", "microphone"]) element(id).disabled = false;
    await this.#open(await this.#example());
    document.documentElement.dataset.ready = "";
  }

  // -- what to listen to

  async #example() {
    const response = await fetch("example.wav");
    return readRecording(await response.blob(), "example.wav", this.#layout.sampleRate);
  }

  async #choose(file) {
    const recording = await readRecording(file, file.name, this.#layout.sampleRate);
    await this.#close();
    await this.#open(recording);
  }

  /** Show a recording and what comes of it. */
  async #open(recording) {
    this.#take(recording);
    await this.#preview();
  }

  /** Be ready to play a recording. */
  #take(recording) {
    this.#recording = recording;
    element("name").textContent = recording.name;
    element("note").textContent = recording.channels.length > 1 ? "stereo" : "mono";
    element("seek").max = String(this.#duration);
    for (const id of ["play", "seek", "download"]) element(id).disabled = false;
    element("download-input").hidden = !recording.heard;
    element("live").hidden = !recording.heard;
    element("listen").closest("label").hidden = true;
    meters.clear();
    this.#showPosition(0);
  }

  /** End what plays. */
  async #close() {
    this.#drawing.abort();
    this.#showMicrophone(false);
    const recorded = await this.#player.stop();
    this.#showPlaying(false);
    return recorded;
  }

  async #toggleMicrophone() {
    if (this.#microphone) {
      const recorded = await this.#close();
      if (!recorded) return;
      const { input, output } = recorded;
      const { sampleRate } = this.#layout;
      await this.#open({ name: "recording.wav", sampleRate, channels: [input], heard: output });
      return;
    }
    await this.#close();
    await this.#player.playMicrophone(this.#settings, this.#bufferHops);
    this.#recording = undefined;
    this.#showMicrophone(true);
    element("name").textContent = "Microphone";
    element("note").textContent = "listening; nothing leaves this tab, five minutes can be kept";
    element("live").hidden = false;
    element("listen").closest("label").hidden = false;
    element("listen").checked = false;
    element("download-input").hidden = true;
    element("play").disabled = false;
    element("download").disabled = true;
    meters.clear();
    this.#clear({ full: true });
    this.#showPlaying(true);
  }

  // -- playing

  async #togglePlaying() {
    if (this.#microphone) return this.#toggleMicrophone();
    if (!this.#recording) return undefined;
    if (this.#player.playing) {
      await this.#player.pause();
      return this.#showPlaying(false);
    }
    if (this.#player.ready) await this.#player.resume();
    else await this.#play(Number(element("seek").value));
    return this.#showPlaying(true);
  }

  async #play(position) {
    this.#drawing.abort();
    meters.clear();
    this.#clear({ full: true });
    await this.#player.playRecording(this.#recording, position, this.#settings, this.#bufferHops);
    this.#showPlaying(true);
  }

  #hear(hops) {
    this.#before.push(joined(hops.map((hop) => hop.input)));
    this.#after.push(joined(hops.map((hop) => hop.output)));
    meters.add(hops);
    if (this.#player.playing) this.#showPosition(this.#player.position);
  }

  /** Draw the beginning of a recording before anybody plays it. */
  async #preview() {
    this.#drawing.abort();
    const { signal } = (this.#drawing = new AbortController());
    const columns = Math.max(this.#before.width, 1) * this.#layout.hopSize;
    const input = mono(this.#recording).slice(0, columns);
    const quiet = new Float32Array(this.#layout.delaySamples);
    try {
      const [output] = await enhancer.enhance([input], this.#settings, { signal });
      if (signal.aborted) return;
      this.#clear();
      this.#before.push(joined([input, quiet]));
      this.#after.push(joined([quiet, output]));
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    }
  }

  #clear(how) {
    this.#before.clear(how);
    this.#after.clear(how);
  }

  // -- settings

  get #settings() {
    const limit = Number(element("limit").value);
    return { attenLimDb: limit === NO_LIMIT ? null : limit, postFilter: Number(element("filter").value) };
  }

  get #bufferHops() {
    return Number(element("buffer").value);
  }

  get #duration() {
    return this.#recording ? this.#recording.channels[0].length / this.#recording.sampleRate : 0;
  }

  async #change() {
    this.#showSettings();
    if (this.#recording) this.#recording.heard = undefined;
    await enhancer.change(this.#settings);
    if (this.#recording && !this.#player.ready) await this.#preview();
  }

  async #changeBuffer() {
    this.#showSettings();
    if (this.#recording && this.#player.ready) await this.#play(this.#player.position);
  }

  // -- files

  async #download() {
    const { name, sampleRate, channels, heard } = this.#recording;
    const label = element("download-label");
    element("download").disabled = true;
    try {
      const onProgress = (share) => (label.textContent = `${Math.round(100 * share)} %`);
      const enhanced = heard ? [heard] : await enhancer.enhance(channels, this.#settings, { onProgress });
      save(`${name.replace(/\.[^.]*$/, "")}-enhanced.wav`, { sampleRate, channels: enhanced });
    } finally {
      label.textContent = "Download";
      element("download").disabled = false;
    }
  }

  // -- what it looks like

  #showSettings() {
    const { attenLimDb, postFilter } = this.#settings;
    element("limit-text").textContent = attenLimDb === null ? "everything" : `${attenLimDb} dB`;
    element("limit").setAttribute("aria-valuetext", element("limit-text").textContent);
    element("filter-text").textContent = postFilter ? postFilter.toFixed(3) : "off";
    element("filter").setAttribute("aria-valuetext", element("filter-text").textContent);
    for (const slider of document.querySelectorAll(".field input")) fill(slider);
    element("delay").textContent = `${Math.round(1000 * this.#player.delay(this.#bufferHops))} ms`;
  }

  #showHeard() {
    const heard = element("hear-after").checked ? "after" : "before";
    this.#player.mix(heard === "after" ? 1 : 0);
    for (const id of ["before", "after"]) element(`figure-${id}`).toggleAttribute("data-heard", id === heard);
  }

  #showMicrophone(on) {
    this.#microphone = on;
    element("microphone").setAttribute("aria-pressed", String(on));
    element("microphone-label").textContent = on ? "Stop the microphone" : "Use the microphone";
    element("seek").hidden = on;
  }

  #showPlaying(playing) {
    element("play").toggleAttribute("data-playing", playing);
    element("play").setAttribute("aria-label", playing ? (this.#microphone ? "Stop" : "Pause") : "Play");
    this.#showSettings();
  }

  #showPosition(position) {
    if (document.activeElement !== element("seek") || !element("seek").matches(":active")) {
      element("seek").value = String(position);
    }
    fill(element("seek"));
    const whole = this.#recording ? ` / ${clock(this.#duration)}` : "";
    element("time").textContent = clock(position) + whole;
  }

  // -- what people do

  #listen() {
    const on = (id, event, action) =>
      element(id).addEventListener(event, (happened) => this.#attempt(() => action(happened)));
    const inTurn = (id, event, action) =>
      element(id).addEventListener(event, (happened) => this.#inTurn(() => action(happened)));
    inTurn("example", "click", async () => {
      await this.#close();
      this.#take(await this.#example());
      await this.#play(0);
    });
    inTurn("file", "change", async ({ target }) => {
      const [file] = target.files;
      target.value = "";
      if (file) await this.#choose(file);
    });
    inTurn("microphone", "click", () => this.#toggleMicrophone());
    inTurn("play", "click", () => this.#togglePlaying());
    on("seek", "input", ({ target }) => fill(target));
    on("seek", "change", ({ target }) => this.#player.seek(Number(target.value)));
    on("limit", "input", () => this.#change());
    on("filter", "input", () => this.#change());
    inTurn("buffer", "change", () => this.#changeBuffer());
    on("hear-before", "change", () => this.#showHeard());
    on("hear-after", "change", () => this.#showHeard());
    on("listen", "change", ({ target }) => this.#player.volume(target.checked ? 1 : 0));
    on("download", "click", () => this.#download());
    on("download-input", "click", () => save("recording.wav", this.#recording));
    listenForKeys({
      play: () => this.#inTurn(() => this.#togglePlaying()),
      switchOver: () => {
        element(element("hear-after").checked ? "hear-before" : "hear-after").checked = true;
        this.#showHeard();
      },
    });
    listenForDrops(element("drop"), (file) => this.#inTurn(() => this.#choose(file)));
  }

  /** What begins and ends sound waits for what does: opening a device takes its time, and clicks come double. */
  #inTurn(action) {
    this.#turn = this.#turn.then(() => this.#attempt(action));
    return this.#turn;
  }

  /** Failures are for people to read; what goes on goes on. */
  async #attempt(action) {
    element("error").hidden = true;
    try {
      await action();
    } catch (error) {
      show(error);
    }
  }
}

function show(error) {
  element("error").textContent = wordsFor(error);
  element("error").hidden = false;
}

new Page().start().catch((error) => {
  element("model").textContent = "not loaded";
  show(error);
});
