import assert from "node:assert/strict";
import { describe, it } from "node:test";

const QUANTUM = 128;
const HOP = 480;

/** The processor of the page's worklet, outside any browser. */
let Hops;
globalThis.AudioWorkletProcessor = class {
  port = { postMessage: (counts) => (this.counts = counts) };
};
globalThis.registerProcessor = (name, processor) => (Hops = processor);
await import("../../examples/web/worklet.js");

/**
 * Run a signal through it, and what comes for the Worker through `work`, which gives the quanta it takes beyond one, and a hop.
 *
 * @returns what is heard, and the processor
 */
function play(samples, { mix, delaySamples = 1440, bufferHops = 4, work = (hop) => [0, hop] }) {
  const processor = new Hops({ processorOptions: { hopSize: HOP, delaySamples, bufferHops } });
  const heard = new Float32Array(samples.length);
  const underway = [];
  let quantum = 0;
  const worker = {
    postMessage({ index, samples: hop }) {
      assert.equal(hop.length, HOP);
      assert.equal(index, underway.length ? underway.at(-1).index + 1 : 0, "hops in their order");
      const [quanta, result] = work(hop, index);
      // one after the other, as a Worker does
      const at = Math.max(quantum + 1 + quanta, underway.at(-1)?.at ?? 0);
      underway.push({ at, index, samples: result });
    },
  };
  processor.port.onmessage({ data: { worker } });
  for (; (quantum + 1) * QUANTUM <= samples.length; quantum++) {
    const [start, end] = [quantum * QUANTUM, (quantum + 1) * QUANTUM];
    for (const back of underway.filter(({ at }) => at === quantum)) if (back.samples) worker.onmessage({ data: back });
    const output = [[heard.subarray(start, end)]];
    assert(processor.process([[samples.subarray(start, end)]], output, { mix: Float32Array.of(mix(start)) }));
  }
  return { heard, processor };
}

const ramp = (length) => Float32Array.from({ length }, (_, i) => i + 1);
const whole = (samples) => Math.floor(samples / QUANTUM) * QUANTUM;

describe("the page's worklet", () => {
  const signal = ramp(whole(48_000));

  it("plays what comes back at a fixed latency", () => {
    for (const bufferHops of [2, 4, 20]) {
      const { heard, processor } = play(signal, { mix: () => 1, bufferHops });
      const latency = bufferHops * HOP;
      assert(heard.subarray(0, latency).every((x) => x === 0));
      assert.deepEqual(heard.subarray(latency), signal.subarray(0, signal.length - latency));
      assert.deepEqual([processor.underruns, processor.missing], [0, 0]);
    }
  });

  it("plays the sound before in step with the one after", () => {
    const late = [];
    // what a network of that delay gives
    const work = (hop) => {
      late.push(...hop);
      return [0, Float32Array.from({ length: HOP }, (_, i) => late[late.length - HOP + i - 1440] ?? 0)];
    };
    const { heard } = play(signal, { mix: (at) => (at % 1000 < 500 ? 0 : 1), work });
    const lag = 4 * HOP + 1440;
    assert.deepEqual(heard.subarray(lag), signal.subarray(0, signal.length - lag));
  });

  it("counts every sample that is late, and keeps the place of those that follow", () => {
    const held = 30; // quanta, 8 hops
    const { heard, processor } = play(signal, {
      mix: () => 1,
      // the Worker is held up, catches up, and leaves a hop out later
      work: (hop, index) => [index === 20 ? held : 0, index === 60 ? undefined : hop],
    });
    const latency = 4 * HOP;
    const expected = new Float32Array(signal.length);
    expected.set(signal.subarray(0, signal.length - latency), latency);
    const gap = heard.findIndex((x, i) => x !== expected[i]);
    assert.equal(gap, 20 * HOP + latency);
    const silent = heard.filter((x, i) => i >= latency && x === 0).length;
    assert(silent > 4 * HOP + HOP);
    assert.equal(processor.underruns, 2);
    assert.equal(processor.missing, silent);
    heard.forEach((x, i) => assert(x === 0 || x === expected[i], `sample ${i}`));
    const after = [30, 65].map((hop) => hop * HOP + latency);
    for (const start of after) assert.equal(heard[start], expected[start]);
    assert.deepEqual(processor.counts, { underruns: processor.underruns, missing: silent });
  });

  it("takes silence where nothing is connected, and ends when told", () => {
    const processor = new Hops({ processorOptions: { hopSize: HOP, delaySamples: 0, bufferHops: 2 } });
    const output = [[new Float32Array(QUANTUM).fill(9)]];
    assert(processor.process([[]], output, { mix: new Float32Array(QUANTUM) }));
    assert(output[0][0].every((x) => x === 0));
    processor.port.onmessage({ data: { end: true } });
    assert(!processor.process([[]], output, { mix: Float32Array.of(1) }));
  });
});
