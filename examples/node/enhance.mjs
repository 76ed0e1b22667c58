#!/usr/bin/env node
// Take the noise out of a WAV file: node enhance.mjs MODEL.onnx IN.wav OUT.wav [--atten-lim-db 12] [--post-filter 0.02]
import { readFile, writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";

import { DfstreamError, enhance, loadModel } from "dfstream";
import { readWav, writeWav } from "dfstream/wav";

async function main() {
  const { positionals, values } = parseArgs({
    allowPositionals: true,
    options: { "atten-lim-db": { type: "string" }, "post-filter": { type: "string", default: "0" } },
  });
  const [graph, input, output] = positionals;
  if (!output) throw new DfstreamError("usage", "expected MODEL.onnx IN.wav OUT.wav");

  const model = await loadModel(graph); // reads the JSON file beside it, too
  const recording = readWav(await readFile(input));
  if (recording.sampleRate !== model.sampleRate) {
    const hint = `sox ${input} -r ${model.sampleRate} other.wav`;
    throw new DfstreamError("audio", `${input} has ${recording.sampleRate} Hz, the model takes ${model.sampleRate}`, {
      hint,
    });
  }

  const limit = values["atten-lim-db"];
  const settings = {
    attenLimDb: limit === undefined ? null : Number(limit),
    postFilter: Number(values["post-filter"]),
  };
  const channels = [];
  for (const samples of recording.channels) channels.push(await enhance(model, samples, settings));

  await writeFile(output, writeWav({ ...recording, channels }, "float32"));
  await model.release();
}

try {
  await main();
} catch (error) {
  console.error(`error: ${error.message}`);
  if (error.hint) console.error(`hint: ${error.hint}`);
  process.exitCode = 1;
}
