import { joined } from "./arrays.js";

/** Hops that may wait: a Worker this far behind leaves out the oldest. */
const MOST_WAITING = 100;

/** Hops in one report to the page. */
const REPORT = 4;

/** Longest recording in hops: five minutes. */
const MOST_RECORDED = 30_000;

/** In the Worker: hops from the audio thread through a stream and back, at its pace. */
export class Live {
  #stream;
  #port;
  #report;
  #waiting = [];
  #busy = Promise.resolve();
  #hops = [];
  #recorded;

  constructor(stream, port, record, report) {
    this.#stream = stream;
    this.#port = port;
    this.#report = report;
    this.#recorded = record ? [] : undefined;
    port.onmessage = ({ data }) => {
      this.#waiting.push(data);
      if (this.#waiting.length === 1) this.#busy = this.#pump();
      else if (this.#waiting.length > MOST_WAITING) this.#waiting.splice(1, 1);
    };
  }

  change(settings) {
    Object.assign(this.#stream, settings);
  }

  /** End it; what was recorded comes as samples that went in and samples that came out, lined up. */
  async stop() {
    this.#port.onmessage = null;
    await this.#busy;
    this.#port.close();
    const tail = await this.#stream.flush();
    if (!this.#recorded?.length) return undefined;
    const input = joined(this.#recorded.map((hop) => hop.input));
    const output = joined([...this.#recorded.map((hop) => hop.output), tail]);
    return { input, output: output.slice(this.#stream.delaySamples, this.#stream.delaySamples + input.length) };
  }

  async #pump() {
    while (this.#waiting.length) {
      const { index, samples } = this.#waiting[0];
      const start = performance.now();
      const output = await this.#stream.process(samples);
      const ms = performance.now() - start;
      this.#port.postMessage({ index, samples: output });
      this.#note({ input: samples, output, lsnr: this.#stream.lsnr[0], ms });
      this.#waiting.shift();
    }
  }

  #note(hop) {
    if (this.#recorded && this.#recorded.length < MOST_RECORDED) this.#recorded.push(hop);
    this.#hops.push(hop);
    if (this.#hops.length === REPORT) this.#report(this.#hops.splice(0));
  }
}
