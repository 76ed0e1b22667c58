// Compiled, never run: what a user of the package writes type-checks, and what they should not write does not.
import { DfstreamError, type Model, type Snapshot, createStream, enhance, loadModel } from "../src/index.js";
import { type Recording, readWav, writeWav } from "../src/wav.js";

export async function use(bytes: Uint8Array): Promise<Uint8Array> {
  const model: Model = await loadModel("dfstream_audio_hop.onnx", { warmUpHops: 0 });
  const stream = await createStream(model, { attenLimDb: 12, postFilter: 0.02 });
  stream.attenLimDb = null;
  const snapshot: Snapshot = stream.snapshot();
  stream.restore(structuredClone(snapshot));
  const recording: Recording = readWav(bytes);
  const channels: Float32Array[] = [];
  for (const channel of recording.channels) channels.push(await enhance(model, channel, { onProgress: console.log }));
  const ready: Float32Array = await stream.process(channels[0]);
  const hint: string | undefined = new DfstreamError("usage", "message").hint;
  console.log(ready.length, stream.lsnr[0], stream.delaySamples / stream.sampleRate, hint);
  // @ts-expect-error a stream's delay belongs to its model
  stream.delaySamples = 0;
  // @ts-expect-error one channel at a time
  await stream.process([new Float32Array(480)]);
  return writeWav({ sampleRate: recording.sampleRate, channels }, "pcm24");
}
