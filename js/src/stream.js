import { DfstreamError } from "./errors.js";

const NONE = new Float32Array(0);

/** One live signal of one channel: `Stream` of `index.d.ts`, which says what the members mean. */
export class Stream {
  #model;
  #input;
  #audio;
  #zeros;
  #state;
  #noisyGain;
  #beta;
  #attenLimDb = /** @type {number | null} */ (null);
  #postFilter = 0;
  #waiting = 0;
  #flushed = false;
  #pending = 0;
  #last = /** @type {Promise<unknown>} */ (Promise.resolve());
  #lsnr = NONE;

  /**
   * @param {import("./model.js").Model} model
   * @param {import("./index.js").Settings} settings
   */
  constructor(model, { attenLimDb = null, postFilter = 0 } = {}) {
    this.#model = model;
    this.#input = new Float32Array(model.hopSize);
    this.#audio = model.audioOf(this.#input);
    this.#zeros = model.freshState();
    this.#state = this.#zeros;
    this.#noisyGain = model.scalar(0);
    this.#beta = model.scalar(0);
    this.samplesIn = 0;
    this.samplesOut = 0;
    this.attenLimDb = attenLimDb;
    this.postFilter = postFilter;
  }

  get model() {
    return this.#model;
  }

  get sampleRate() {
    return this.#model.sampleRate;
  }

  get hopSize() {
    return this.#model.hopSize;
  }

  get delaySamples() {
    return this.#model.delaySamples;
  }

  get lsnr() {
    return this.#lsnr;
  }

  get attenLimDb() {
    return this.#attenLimDb;
  }

  set attenLimDb(limit) {
    if (limit !== null && !(typeof limit === "number" && limit >= 0)) {
      throw new DfstreamError("usage", `attenLimDb = ${limit}: expected null or a number of dB, 0 or more`);
    }
    this.#attenLimDb = limit;
    this.#noisyGain = this.#model.scalar(limit === null ? 0 : 10 ** (-limit / 20));
  }

  get postFilter() {
    return this.#postFilter;
  }

  set postFilter(beta) {
    if (!(typeof beta === "number" && beta >= 0 && beta <= 1)) {
      throw new DfstreamError("usage", `postFilter = ${beta}: expected a number from 0 to 1`);
    }
    this.#postFilter = beta;
    this.#beta = this.#model.scalar(beta);
  }

  /** @param {Float32Array} samples */
  process(samples) {
    if (!(samples instanceof Float32Array)) {
      const hint = "one channel, full scale at 1; a stream for each channel";
      return Promise.reject(new DfstreamError("audio", "expected a Float32Array of samples", { hint }));
    }
    return this.#inTurn(() => {
      if (this.#flushed) {
        throw new DfstreamError("usage", "the stream has been flushed", { hint: "call reset() to begin a new one" });
      }
      this.samplesIn += samples.length;
      return this.#hops(samples);
    });
  }

  flush() {
    return this.#inTurn(async () => {
      if (this.#flushed) return NONE;
      this.#flushed = true;
      const left = this.samplesIn + this.delaySamples - this.samplesOut;
      const hops = Math.ceil(left / this.hopSize);
      const tail = (await this.#hops(new Float32Array(hops * this.hopSize - this.#waiting))).slice(0, left);
      this.samplesOut = this.samplesIn + this.delaySamples;
      return tail;
    });
  }

  reset() {
    this.#mustBeIdle("reset");
    this.#state = this.#zeros;
    this.#waiting = 0;
    this.#flushed = false;
    this.#lsnr = NONE;
    this.samplesIn = 0;
    this.samplesOut = 0;
  }

  snapshot() {
    this.#mustBeIdle("snapshot");
    return {
      model: this.#model.id,
      state: Float32Array.from(this.#state.data),
      waiting: this.#input.slice(0, this.#waiting),
      samplesIn: this.samplesIn,
      samplesOut: this.samplesOut,
      flushed: this.#flushed,
      attenLimDb: this.#attenLimDb,
      postFilter: this.#postFilter,
    };
  }

  /** @param {import("./index.js").Snapshot} snapshot */
  restore(snapshot) {
    this.#mustBeIdle("restore");
    const fits = snapshot?.model === this.#model.id && snapshot.state?.length === this.#model.stateSize;
    if (!fits || !(snapshot.waiting?.length < this.hopSize)) {
      throw new DfstreamError("usage", "the snapshot is of another model, or none at all");
    }
    this.attenLimDb = snapshot.attenLimDb;
    this.postFilter = snapshot.postFilter;
    this.#state = this.#model.stateOf(Float32Array.from(snapshot.state));
    this.#input.set(snapshot.waiting);
    this.#waiting = snapshot.waiting.length;
    this.#flushed = snapshot.flushed;
    this.#lsnr = NONE;
    this.samplesIn = snapshot.samplesIn;
    this.samplesOut = snapshot.samplesOut;
  }

  /**
   * Calls queue: a runtime answers later, and the state of one hop is the input of the next.
   *
   * @template T
   * @param {() => T | Promise<T>} work
   * @returns {Promise<T>}
   */
  #inTurn(work) {
    this.#pending += 1;
    const turn = this.#last.then(work).finally(() => (this.#pending -= 1));
    this.#last = turn.catch(() => {});
    return turn;
  }

  /** @param {string} what */
  #mustBeIdle(what) {
    if (this.#pending) {
      const hint = "await process() and flush() before";
      throw new DfstreamError("usage", `${what}() while samples are being processed`, { hint });
    }
  }

  /**
   * Run every hop that is whole, keep the rest.
   *
   * @param {Float32Array} samples
   */
  async #hops(samples) {
    const { hopSize } = this;
    const count = Math.floor((this.#waiting + samples.length) / hopSize);
    const ready = new Float32Array(count * hopSize);
    const lsnr = new Float32Array(count);
    let taken = 0;
    for (let hop = 0; hop < count; hop++) {
      const missing = hopSize - this.#waiting;
      this.#input.set(samples.subarray(taken, taken + missing), this.#waiting);
      taken += missing;
      this.#waiting = 0;
      const result = await this.#model.run(this.#audio, this.#state, this.#noisyGain, this.#beta);
      this.#state = result.state;
      ready.set(result.enhanced, hop * hopSize);
      lsnr[hop] = result.lsnr;
    }
    this.#input.set(samples.subarray(taken), this.#waiting);
    this.#waiting += samples.length - taken;
    this.samplesOut += ready.length;
    this.#lsnr = lsnr;
    return ready;
  }
}
