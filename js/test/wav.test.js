import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { readWav, writeWav } from "../src/wav.js";

const LEFT = Float32Array.of(0, 0.1, -0.3, 0.7, -1);
const RIGHT = Float32Array.of(-0.125, 0.75, 0, 2 ** -15, 0.0625);

/** A WAV file by hand: header as given, samples as bytes. */
function file(code, channels, bits, data, { extra = [], extensible = false } = {}) {
  const form = new DataView(new ArrayBuffer(extensible ? 40 : 16));
  form.setUint16(0, extensible ? 0xfffe : code, true);
  form.setUint16(2, channels, true);
  form.setUint32(4, 44_100, true);
  form.setUint16(14, bits, true);
  if (extensible) form.setUint16(24, code, true);
  const chunk = (tag, bytes) => {
    const size = new Uint8Array(Uint32Array.of(bytes.length).buffer);
    return [...Buffer.from(tag), ...size, ...bytes, ...(bytes.length % 2 ? [0] : [])];
  };
  const body = [...chunk("fmt ", new Uint8Array(form.buffer)), ...extra, ...chunk("data", new Uint8Array(data))];
  return Uint8Array.from([...Buffer.from("RIFF"), 0, 0, 0, 0, ...Buffer.from("WAVE"), ...body]);
}

describe("WAV", () => {
  it("comes back as it went", () => {
    for (const [format, step] of [
      ["pcm16", 2 ** -15],
      ["pcm24", 2 ** -23],
      ["float32", 0],
    ]) {
      const found = readWav(writeWav({ sampleRate: 48_000, channels: [LEFT, RIGHT] }, format));
      assert.equal(found.sampleRate, 48_000);
      found.channels.forEach((channel, i) =>
        channel.forEach((x, n) => assert(Math.abs(x - [LEFT, RIGHT][i][n]) <= step / 2, `${format} ${x}`)),
      );
    }
  });

  it("clips what integers cannot hold, and floats do not", () => {
    const recording = { sampleRate: 8000, channels: [Float32Array.of(2, -2, 1)] };
    for (const [format, bits] of [
      ["pcm16", 15],
      ["pcm24", 23],
    ]) {
      const top = Math.fround((2 ** bits - 1) / 2 ** bits);
      assert.deepEqual([...readWav(writeWav(recording, format)).channels[0]], [top, -1, top]);
    }
    assert.deepEqual([...readWav(writeWav(recording, "float32")).channels[0]], [2, -2, 1]);
  });

  it("is read in every format of samples", () => {
    for (const [code, bits, bytes, wanted] of [
      [1, 8, [128, 0, 192], [0, -1, 0.5]],
      [1, 16, [0, 0, 0, 128, 0, 64], [0, -1, 0.5]],
      [1, 24, [0, 0, 0, 0, 0, 128, 0, 0, 64], [0, -1, 0.5]],
      [1, 32, new Uint8Array(Int32Array.of(0, -(2 ** 31), 2 ** 30).buffer), [0, -1, 0.5]],
      [3, 32, new Uint8Array(Float32Array.of(0, -1, 0.5).buffer), [0, -1, 0.5]],
      [3, 64, new Uint8Array(Float64Array.of(0, -1, 0.5).buffer), [0, -1, 0.5]],
    ]) {
      for (const extensible of [false, true]) {
        const found = readWav(file(code, 1, bits, bytes, { extensible }));
        assert.deepEqual([...found.channels[0]], wanted, `format ${code}, ${bits} bits`);
        assert.equal(found.sampleRate, 44_100);
      }
    }
  });

  it("may hold other chunks, and an array buffer may hold it", () => {
    const odd = [...Buffer.from("LIST"), 3, 0, 0, 0, 1, 2, 3, 0];
    const bytes = file(1, 1, 16, [0, 64], { extra: odd });
    assert.deepEqual([...readWav(bytes).channels[0]], [0.5]);
    assert.deepEqual([...readWav(bytes.buffer).channels[0]], [0.5]);
  });

  it("is refused in one line where it is none", () => {
    const good = file(1, 1, 16, [0, 64]);
    for (const bad of [
      new Uint8Array(0),
      new TextEncoder().encode("not sound at all, but long enough to be a header of some sort"),
      good.subarray(0, 30),
      file(2, 1, 4, [1, 2]),
      file(1, 0, 16, [0, 64]),
    ]) {
      assert.throws(() => readWav(bad), { name: "DfstreamError", kind: "audio" });
    }
  });
});
