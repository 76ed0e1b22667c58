/** Samples kept of what came in and what came back: more than the longest buffer and delay together. */
const KEPT = 1 << 16;
const MASK = KEPT - 1;

/** Samples between two reports to the page. */
const REPORT = 9600;

/**
 * Cuts the sound into hops for the Worker and plays what comes back, or the sound itself, at a fixed latency.
 *
 * A sample that has not come back in time is silence and counted; the ones after it stay where they belong.
 */
class Hops extends AudioWorkletProcessor {
  static get parameterDescriptors() {
    // 0: before, 1: after; the page ramps it, so that a switch does not click
    return [{ name: "mix", defaultValue: 1, minValue: 0, maxValue: 1 }];
  }

  constructor({ processorOptions }) {
    super();
    this.hop = new Float32Array(processorOptions.hopSize);
    this.delay = processorOptions.delaySamples;
    this.latency = processorOptions.bufferHops * processorOptions.hopSize;
    this.before = new Float32Array(KEPT);
    this.after = new Float32Array(KEPT);
    this.now = 0;
    this.filled = 0;
    this.returned = 0;
    this.underruns = 0;
    this.missing = 0;
    this.starving = false;
    this.running = true;
    this.port.onmessage = ({ data }) => {
      if (data.worker) {
        this.worker = data.worker;
        this.worker.onmessage = (message) => this.take(message.data);
      } else {
        this.running = false;
      }
    };
  }

  /** A hop from the Worker, which may have left some out. */
  take({ index, samples }) {
    const start = index * this.hop.length;
    for (; this.returned < start; this.returned++) this.after[this.returned & MASK] = NaN;
    for (let i = 0; i < samples.length; i++) this.after[(start + i) & MASK] = samples[i];
    this.returned = Math.max(this.returned, start + samples.length);
  }

  process(inputs, outputs, { mix }) {
    const input = inputs[0][0];
    const output = outputs[0][0];
    for (let i = 0; i < output.length; i++) {
      const sample = input ? input[i] : 0;
      this.before[this.now & MASK] = sample;
      this.hop[this.filled++] = sample;
      if (this.filled === this.hop.length) this.send();
      output[i] = this.next(mix.length > 1 ? mix[i] : mix[0]);
      this.now++;
      if (this.now % REPORT === 0) this.report();
    }
    return this.running;
  }

  send() {
    const samples = this.hop;
    const index = (this.now + 1) / samples.length - 1;
    this.hop = new Float32Array(samples.length);
    this.filled = 0;
    this.worker?.postMessage({ index, samples }, [samples.buffer]);
  }

  /** The sample to hear now. */
  next(mix) {
    const at = this.now - this.latency;
    if (at < 0) return 0;
    const returned = at < this.returned ? this.after[at & MASK] : NaN;
    const missing = Number.isNaN(returned);
    if (missing && !this.starving) this.underruns++;
    if (missing) this.missing++;
    this.starving = missing;
    const after = missing ? 0 : returned;
    const before = this.before[(at - this.delay) & MASK];
    return before + mix * (after - before);
  }

  report() {
    this.port.postMessage({ underruns: this.underruns, missing: this.missing });
  }
}

registerProcessor("hops", Hops);
