/** Seconds of a crossfade between before and after, and of a change of volume. */
const FADE_S = 0.03;

/** The way of the sound: a source, the hops of the worklet, the loudspeaker. */
export class Player {
  #enhancer;
  #layout;
  #context;
  #session;
  #mix = 1;

  /** Called with what the worklet counted. */
  onCounts = () => {};

  constructor(enhancer, layout) {
    this.#enhancer = enhancer;
    this.#layout = layout;
  }

  /** Whether something is played, or paused. */
  get ready() {
    return Boolean(this.#session);
  }

  get playing() {
    return Boolean(this.#session) && this.#context.state === "running";
  }

  /** Seconds of the recording, or since the microphone was opened. */
  get position() {
    const { start, duration } = this.#session ?? { start: 0 };
    const elapsed = this.#session ? this.#context.currentTime - start : 0;
    return duration ? elapsed % duration : elapsed;
  }

  /** Seconds between a sound and its enhanced self, as far as the browser knows. */
  delay(bufferHops) {
    const { hopSize, delaySamples, sampleRate } = this.#layout;
    const device = this.#context ? this.#context.baseLatency + (this.#context.outputLatency || 0) : 0;
    return (bufferHops * hopSize + delaySamples) / sampleRate + device;
  }

  /** Play a recording over and over, from a position in seconds. */
  async playRecording(recording, position, settings, bufferHops) {
    await this.#begin(settings, bufferHops, false);
    const [first] = recording.channels;
    const buffer = this.#context.createBuffer(recording.channels.length, first.length, recording.sampleRate);
    recording.channels.forEach((samples, i) => buffer.copyToChannel(samples, i));
    this.#session.buffer = buffer;
    this.#session.duration = buffer.duration;
    this.seek(position);
    this.volume(1);
    await this.#context.resume();
  }

  /** Run the microphone through, silently at first. */
  async playMicrophone(settings, bufferHops) {
    const devices = navigator.mediaDevices;
    if (!devices) throw new Error("browsers give the microphone to https pages and to localhost only");
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    const stream = await devices.getUserMedia({ audio });
    await this.#begin(settings, bufferHops, true);
    this.#session.stream = stream;
    this.#session.source = this.#context.createMediaStreamSource(stream);
    this.#session.source.connect(this.#session.hops);
    this.#session.start = this.#context.currentTime;
    this.volume(0);
    await this.#context.resume();
  }

  pause() {
    return this.#context?.suspend();
  }

  resume() {
    return this.#context?.resume();
  }

  /** Go on at another position of the recording. */
  seek(position) {
    const session = this.#session;
    if (!session?.buffer) return;
    session.source?.stop();
    session.source?.disconnect();
    session.source = new AudioBufferSourceNode(this.#context, { buffer: session.buffer, loop: true });
    session.source.connect(session.hops);
    session.source.start(0, position);
    session.start = this.#context.currentTime - position;
  }

  /** 0 lets hear what it was, 1 what it became. */
  mix(share) {
    this.#mix = share;
    this.#ramp(this.#session?.hops.parameters.get("mix"), share);
  }

  volume(gain) {
    this.#ramp(this.#session?.gain.gain, gain);
  }

  /** End; gives what was recorded of the microphone. */
  async stop() {
    const session = this.#session;
    if (!session) return undefined;
    this.#session = undefined;
    for (const track of session.stream?.getTracks() ?? []) track.stop();
    session.source?.disconnect();
    session.gain.disconnect();
    session.hops.port.postMessage({ end: true });
    return this.#enhancer.stop();
  }

  async #begin(settings, bufferHops, record) {
    await this.stop();
    const { sampleRate, hopSize, delaySamples } = this.#layout;
    if (!this.#context) {
      const context = new AudioContext({ sampleRate, latencyHint: "interactive" });
      await context.audioWorklet.addModule(new URL("./worklet.js", import.meta.url));
      this.#context = context;
    }
    const hops = new AudioWorkletNode(this.#context, "hops", {
      numberOfInputs: 1,
      numberOfOutputs: 1,
      outputChannelCount: [1],
      // the browser mixes down what has more channels
      channelCount: 1,
      channelCountMode: "explicit",
      parameterData: { mix: this.#mix },
      processorOptions: { hopSize, delaySamples, bufferHops },
    });
    const gain = new GainNode(this.#context, { gain: 0 });
    hops.connect(gain).connect(this.#context.destination);
    hops.port.onmessage = ({ data }) => this.onCounts(data);
    const { port1, port2 } = new MessageChannel();
    await this.#enhancer.start(port2, settings, record);
    hops.port.postMessage({ worker: port1 }, [port1]);
    this.#session = { hops, gain, start: this.#context.currentTime };
  }

  #ramp(parameter, value) {
    if (!parameter) return;
    const now = this.#context.currentTime;
    parameter.cancelScheduledValues(now);
    parameter.setValueAtTime(parameter.value, now);
    parameter.linearRampToValueAtTime(value, now + FADE_S);
  }
}
