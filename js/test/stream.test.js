import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { before, describe, it } from "node:test";

import { createStream, enhance, loadModel } from "../src/index.js";
import { readWav } from "../src/wav.js";

// `tests/test_js.py` writes both: graphs of the bundled model, and what the Rust engine makes of its goldens
const { DFSTREAM_JS_MODEL: MODEL, DFSTREAM_JS_GOLDENS: GOLDENS } = process.env;
const GRAPH = join(MODEL ?? "", "dfstream_audio_hop.onnx");

const wav = (name) => readWav(readFileSync(join(GOLDENS, name))).channels[0];

function joined(parts) {
  return Float32Array.from(parts.flatMap((part) => Array.from(part)));
}

/** dB of a signal over its difference to another. */
function snr(wanted, found) {
  let [signal, error] = [0, 0];
  wanted.forEach((value, i) => {
    signal += value ** 2;
    error += (value - found[i]) ** 2;
  });
  return 10 * Math.log10(signal / error);
}

/** Whole signal through a stream, cut by lengths that repeat. */
async function cut(stream, samples, lengths) {
  const parts = [];
  for (let start = 0, i = 0; start < samples.length; start += lengths[i++ % lengths.length]) {
    parts.push(await stream.process(samples.subarray(start, start + lengths[i % lengths.length])));
  }
  return joined(parts);
}

describe("a stream", { skip: MODEL ? false : "DFSTREAM_JS_MODEL names no folder of audio graphs" }, () => {
  let model;
  let noisy;
  before(async () => {
    model = await loadModel(GRAPH, { warmUpHops: 2 });
    noisy = wav("white_snr5.in.wav").subarray(0, 48_000);
  });

  it("gives what the Rust engine gives", async () => {
    const cases = readdirSync(GOLDENS).filter((name) => name.endsWith(".in.wav"));
    assert(cases.length >= 4);
    for (const name of cases) {
      const wanted = wav(name.replace(".in.", ".out."));
      const found = await (await createStream(model)).process(wav(name));
      assert.equal(found.length, wanted.length);
      const db = snr(wanted, found);
      console.log(`${name.split(".")[0]} ${db.toFixed(1)} dB`);
      assert(db >= 100, `${name}: ${db} dB`);
    }
  });

  it("does not depend on how the input is cut", async () => {
    const whole = await (await createStream(model)).process(noisy);
    for (const lengths of [[480], [1, 479, 960], [7, 1000, 333], [4801], [128]]) {
      const found = await cut(await createStream(model), noisy, lengths);
      assert.deepEqual(found, whole, `lengths ${lengths}`);
    }
  });

  it("keeps the order of calls that nobody awaits", async () => {
    const whole = await (await createStream(model)).process(noisy);
    const stream = await createStream(model);
    const calls = [0, 1, 2, 3].map((i) => stream.process(noisy.subarray(i * 12_000, (i + 1) * 12_000)));
    assert.throws(() => stream.snapshot(), { kind: "usage", message: /while samples are being processed/ });
    assert.deepEqual(joined(await Promise.all(calls)), whole);
  });

  it("ends with all that is inside", async () => {
    for (const length of [0, 1, 479, 480, 5000]) {
      const stream = await createStream(model);
      const samples = noisy.subarray(0, length);
      const all = joined([await stream.process(samples), await stream.flush()]);
      assert.equal(all.length, length + stream.delaySamples);
      assert.deepEqual(await enhance(model, samples), all.subarray(stream.delaySamples));
      assert.equal((await stream.flush()).length, 0);
      assert.equal(stream.samplesOut, all.length);
      await assert.rejects(stream.process(samples), { kind: "usage", hint: /reset/ });
    }
  });

  it("is as new after a reset", async () => {
    const stream = await createStream(model);
    const first = await stream.process(noisy);
    await stream.flush();
    stream.reset();
    assert.equal(stream.samplesIn, 0);
    assert.deepEqual(await stream.process(noisy), first);
  });

  it("goes on from a snapshot, bit for bit", async () => {
    const stream = await createStream(model, { attenLimDb: 20, postFilter: 0.02 });
    await stream.process(noisy.subarray(0, 10_000));
    const snapshot = stream.snapshot();
    const copy = structuredClone(snapshot);
    const wanted = await stream.process(noisy.subarray(10_000, 30_000));
    const other = await createStream(model);
    other.restore(copy);
    assert.deepEqual([other.attenLimDb, other.postFilter, other.samplesIn], [20, 0.02, 10_000]);
    assert.deepEqual(await other.process(noisy.subarray(10_000, 30_000)), wanted);
    stream.restore(snapshot);
    assert.deepEqual(await stream.process(noisy.subarray(10_000, 30_000)), wanted);
    assert.throws(() => stream.restore({ ...snapshot, model: "other" }), { kind: "usage" });
    assert.throws(() => stream.restore({}), { kind: "usage" });
  });

  it("takes settings that change on the way", async () => {
    const stream = await createStream(model, { attenLimDb: 0 });
    const passed = await stream.process(noisy);
    const delayed = passed.subarray(stream.delaySamples);
    assert(snr(noisy.subarray(0, delayed.length), delayed) > 100, "0 dB passes the input on, delayed");
    const steady = await createStream(model);
    await steady.process(noisy);
    stream.attenLimDb = null;
    const [freed, wanted] = [await stream.process(noisy), await steady.process(noisy)];
    // half of the first hop was made with the old setting: windows overlap
    assert.deepEqual(freed.subarray(480), wanted.subarray(480));
    stream.postFilter = 0.05;
    assert.notDeepEqual(await stream.process(noisy), await steady.process(noisy));
    for (const wrong of [-1, NaN, "12", undefined]) {
      assert.throws(() => (stream.attenLimDb = wrong), { kind: "usage" });
    }
    for (const wrong of [-0.1, 1.1, NaN, null]) assert.throws(() => (stream.postFilter = wrong), { kind: "usage" });
    assert.deepEqual([stream.attenLimDb, stream.postFilter], [null, 0.05]);
  });

  it("leaves as much of the noise as it is told", async () => {
    const free = await (await createStream(model)).process(noisy);
    const limited = await (await createStream(model, { attenLimDb: 20 })).process(noisy);
    const wanted = free.map((x, i) => 0.9 * x + 0.1 * (noisy[i - model.delaySamples] ?? 0));
    assert(snr(wanted.subarray(1440), limited.subarray(1440)) > 90);
  });

  it("tells the local SNR of every hop of a call", async () => {
    const stream = await createStream(model);
    await stream.process(noisy.subarray(0, 4800));
    assert.equal(stream.lsnr.length, 10);
    assert(stream.lsnr.every((db) => db > -20 && db < 40));
    await stream.process(noisy.subarray(4800, 4801));
    assert.equal(stream.lsnr.length, 0);
  });

  it("recovers from samples that are none", async () => {
    const stream = await createStream(model);
    const broken = Float32Array.from(noisy);
    broken.set([NaN, Infinity, -Infinity], 1000);
    const found = await stream.process(broken);
    assert(found.every(Number.isFinite));
  });

  it("takes one channel of float32 and nothing else", async () => {
    const stream = await createStream(model);
    for (const wrong of [[0, 0], new Float64Array(480), undefined]) {
      await assert.rejects(stream.process(wrong), { kind: "audio" });
    }
    assert.equal(stream.samplesIn, 0);
  });

  it("enhances whole recordings, tells how far it is, and stops when told", async () => {
    const seen = [];
    const abort = new AbortController();
    await enhance(model, noisy, { onProgress: (share) => seen.push(share) });
    assert.equal(seen.at(-1), 1);
    assert.deepEqual(seen, [...seen].sort());
    const stopped = enhance(model, noisy, { signal: abort.signal, onProgress: () => abort.abort() });
    await assert.rejects(stopped, { name: "AbortError" });
  });

  it("shares a model with other streams", async () => {
    const alone = await (await createStream(model)).process(noisy);
    const streams = [await createStream(model), await createStream(model)];
    const [first, second] = await Promise.all([streams[0].process(noisy), streams[1].process(noisy.map((x) => x / 2))]);
    assert.deepEqual(first, alone);
    assert.notDeepEqual(second, alone);
  });

  it("takes bytes and a description as well as paths", async () => {
    const layout = JSON.parse(readFileSync(GRAPH.replace(".onnx", ".json"), "utf8"));
    const bytes = readFileSync(GRAPH);
    const other = await loadModel(bytes, { layout, warmUpHops: 0 });
    assert.deepEqual([other.id, other.stateSize], [model.id, layout.state.size]);
    await assert.rejects(loadModel(bytes), { kind: "usage", hint: /layout/ });
    await other.release();
  });

  it("says what is wrong with a model", async () => {
    const layout = JSON.parse(readFileSync(GRAPH.replace(".onnx", ".json"), "utf8"));
    const bytes = readFileSync(GRAPH);
    await assert.rejects(loadModel("nowhere.onnx"), { kind: "model", message: /nowhere.json/ });
    await assert.rejects(loadModel("nowhere.onnx", { layout }), { kind: "model", message: /nowhere.onnx/ });
    await assert.rejects(loadModel(bytes, { layout: {} }), { kind: "model" });
    await assert.rejects(loadModel(bytes, { layout: GRAPH }), { kind: "model", message: /JSON/ });
    await assert.rejects(loadModel(bytes.subarray(0, 1000), { layout }), { kind: "model", message: /runtime/ });
    for (const wrong of [{ hop_size: 240 }, { state: { size: 10 } }]) {
      await assert.rejects(loadModel(bytes, { layout: { ...layout, ...wrong } }), { kind: "model", hint: /JSON/ });
    }
    await assert.rejects(loadModel(bytes, { layout: { ...layout, delay_samples: "1440" } }), { kind: "model" });
    const block = GRAPH.replace("_hop", "_block");
    await assert.rejects(loadModel(block), { kind: "model", message: /one hop/ });
  });
});
