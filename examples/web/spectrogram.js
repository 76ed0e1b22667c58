const SIZE = 1024;
const BINS = SIZE / 2;

/** Hz shown at the bottom and at the top, evenly in mel between. */
const LOWEST = 60;
const HIGHEST = 16_000;
const MARKS = [250, 1000, 4000];

/** dB of a full-scale sine that are darkest and brightest. */
const DARKEST = -92;
const BRIGHTEST = -22;

/** Points of a map from black over violet and orange to pale yellow, evenly bright in between. */
const COLOURS = [
  [6, 4, 15],
  [28, 16, 68],
  [79, 18, 123],
  [129, 37, 129],
  [181, 54, 122],
  [229, 80, 100],
  [251, 135, 97],
  [254, 194, 135],
  [252, 253, 191],
];

const BLACK = `rgb(${COLOURS[0].join(" ")})`;

const PALETTE = Uint8ClampedArray.from({ length: 1024 }, (_, i) => {
  const at = ((i >> 2) / 255) * (COLOURS.length - 1);
  const low = COLOURS[Math.floor(at)];
  const high = COLOURS[Math.min(COLOURS.length - 1, Math.floor(at) + 1)];
  const channel = i & 3;
  return channel === 3 ? 255 : low[channel] + (at % 1) * (high[channel] - low[channel]);
});

const WINDOW = Float32Array.from({ length: SIZE }, (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / SIZE));
const COS = Float32Array.from({ length: BINS }, (_, k) => Math.cos((2 * Math.PI * k) / SIZE));
const SIN = Float32Array.from({ length: BINS }, (_, k) => Math.sin((2 * Math.PI * k) / SIZE));
const REVERSED = Uint16Array.from({ length: SIZE }, (_, n) => {
  let reversed = 0;
  for (let bit = 1; bit < SIZE; bit <<= 1) reversed = (reversed << 1) | (n & bit ? 1 : 0);
  return reversed;
});

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  return canvas;
}

const mel = (hz) => Math.log1p(hz / 700);
const hertz = (value) => 700 * Math.expm1(value);

/** A picture that moves on by a column with every hop. */
export class Spectrogram {
  #canvas;
  #sampleRate;
  #hopSize;
  #image;
  #columns;
  #next = 0;
  #rows = [];
  #recent = new Float32Array(SIZE);
  #held;
  #re = new Float32Array(SIZE);
  #im = new Float32Array(SIZE);
  #level = new Float32Array(BINS + 1);
  #asked = false;

  /** `delaySamples` holds the sound back, so that it lines up with another that lags by so much. */
  constructor(canvas, { sampleRate, hopSize }, delaySamples = 0) {
    this.#canvas = canvas;
    this.#sampleRate = sampleRate;
    this.#hopSize = hopSize;
    this.#held = { delaySamples, samples: new Float32Array(delaySamples) };
    new ResizeObserver(() => this.#resize()).observe(canvas);
    this.#resize();
  }

  /** Columns that fit. */
  get width() {
    return Math.floor(this.#canvas.width / this.#scale);
  }

  get #scale() {
    return Math.max(1, Math.round(devicePixelRatio));
  }

  /** Begin anew, at the left, or, as if it were full of silence, at the right. */
  clear({ full = false } = {}) {
    this.#recent.fill(0);
    this.#held.samples = new Float32Array(this.#held.delaySamples);
    this.#columns.fillStyle = BLACK;
    this.#columns.fillRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#next = full ? this.width : 0;
    this.#show();
  }

  /** Add hops. */
  push(samples) {
    const aligned = this.#align(samples);
    for (let start = 0; start + this.#hopSize <= aligned.length; start += this.#hopSize) {
      this.#recent.copyWithin(0, this.#hopSize);
      this.#recent.set(aligned.subarray(start, start + this.#hopSize), SIZE - this.#hopSize);
      this.#transform();
      this.#draw();
    }
    this.#show();
  }

  #align(samples) {
    if (!this.#held.delaySamples) return samples;
    const all = new Float32Array(this.#held.samples.length + samples.length);
    all.set(this.#held.samples);
    all.set(samples, this.#held.samples.length);
    this.#held.samples = all.slice(samples.length);
    return all.subarray(0, samples.length);
  }

  #resize() {
    const { width, height } = this.#canvas.getBoundingClientRect();
    const size = [Math.max(1, Math.round(width * this.#scale)), Math.max(1, Math.round(height * this.#scale))];
    if (this.#columns && this.#canvas.width === size[0] && this.#canvas.height === size[1]) return;
    const old = canvasOf(this.#canvas.width, this.#canvas.height);
    if (this.#columns) this.#unroll(old.getContext("2d", { alpha: false }));
    [this.#canvas.width, this.#canvas.height] = size;
    this.#columns = canvasOf(...size).getContext("2d", { alpha: false });
    this.#image = this.#columns.createImageData(this.#scale, size[1]);
    this.#rows = Array.from({ length: size[1] }, (_, row) => {
      const share = 1 - row / Math.max(1, size[1] - 1);
      const bin = (hertz(mel(LOWEST) + share * (mel(HIGHEST) - mel(LOWEST))) * SIZE) / this.#sampleRate;
      return [Math.floor(bin), bin % 1];
    });
    this.#columns.fillStyle = BLACK;
    this.#columns.fillRect(0, 0, ...size);
    if (this.#next) this.#columns.drawImage(old, 0, 0, ...size);
    if (this.#next) this.#next = this.width;
    this.#show();
  }

  /** Draw the ring of columns, oldest first. */
  #unroll(context) {
    const ring = this.#columns.canvas;
    const cut = this.#next < this.width ? 0 : (this.#next % this.width) * this.#scale;
    context.drawImage(ring, -cut, 0);
    if (cut) context.drawImage(ring, this.width * this.#scale - cut, 0);
  }

  /** Level in dB of every bin of the last samples. */
  #transform() {
    const [re, im] = [this.#re, this.#im];
    for (let n = 0; n < SIZE; n++) {
      re[REVERSED[n]] = this.#recent[n] * WINDOW[n];
      im[n] = 0;
    }
    for (let half = 1; half < SIZE; half *= 2) {
      const step = BINS / half;
      for (let first = 0; first < SIZE; first += 2 * half) {
        for (let k = 0; k < half; k++) {
          const [a, b] = [first + k, first + k + half];
          const [c, s] = [COS[k * step], SIN[k * step]];
          const [x, y] = [re[b] * c + im[b] * s, im[b] * c - re[b] * s];
          [re[b], im[b]] = [re[a] - x, im[a] - y];
          re[a] += x;
          im[a] += y;
        }
      }
    }
    for (let k = 0; k <= BINS; k++) {
      const power = (re[k] * re[k] + im[k] * im[k]) / (BINS / 2) ** 2;
      this.#level[k] = 10 * Math.log10(power + 1e-12);
    }
  }

  #draw() {
    const { data, width } = this.#image;
    this.#rows.forEach(([bin, share], row) => {
      const level = this.#level[bin] + share * (this.#level[bin + 1] - this.#level[bin]);
      const shade = Math.max(0, Math.min(255, Math.round((255 * (level - DARKEST)) / (BRIGHTEST - DARKEST))));
      for (let x = 0; x < width; x++) {
        for (let channel = 0; channel < 4; channel++)
          data[4 * (row * width + x) + channel] = PALETTE[4 * shade + channel];
      }
    });
    this.#columns.putImageData(this.#image, (this.#next % this.width) * width, 0);
    this.#next++;
  }

  #show() {
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      this.#asked = false;
      this.#paint();
    });
  }

  /** The columns, and marks of the frequency. */
  #paint() {
    const context = this.#canvas.getContext("2d", { alpha: false });
    const { width, height } = this.#canvas;
    this.#unroll(context);
    context.font = `${11 * this.#scale}px system-ui, sans-serif`;
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.lineJoin = "round";
    for (const mark of MARKS) {
      const y = height * (1 - (mel(mark) - mel(LOWEST)) / (mel(HIGHEST) - mel(LOWEST)));
      context.fillStyle = "rgb(255 255 255 / 12%)";
      context.fillRect(0, y, width, this.#scale / 2);
      const [text, x] = [mark < 1000 ? `${mark} Hz` : `${mark / 1000} kHz`, width - 8 * this.#scale];
      // readable on noise and on silence
      context.lineWidth = 3 * this.#scale;
      context.strokeStyle = "rgb(6 4 15 / 65%)";
      context.strokeText(text, x, y - 8 * this.#scale);
      context.fillStyle = "rgb(255 255 255 / 85%)";
      context.fillText(text, x, y - 8 * this.#scale);
    }
  }
}
