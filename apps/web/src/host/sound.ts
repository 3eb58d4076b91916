/**
 * Recordings as arrays: channels to one, other sampling rates.
 *
 * Knows samples from -1 to 1. Knows nothing of what an encoder wants.
 */

/** One array of samples a channel, all of one length. */
export interface Clip {
  readonly channels: readonly Float32Array[];
  readonly rate: number;
}

const CANCELLED = 0.1; // of the energy that unrelated channels would leave in their average
const CROSSINGS = 40; // of the sinc, on each side
const PER_CROSSING = 1024; // values of the table; linear between them is exact to -118 dB
const BETA = 12; // of the Kaiser window: side lobes below -115 dB
const PASSBAND = 0.955; // of the lower rate's band

/** The average of all channels; where these cancel each other, the loudest alone. */
export function mixToMono(channels: readonly Float32Array[]): Float32Array {
  const [first] = channels;
  if (channels.length === 1) return first;
  const mono = new Float32Array(first.length);
  let left = 0;
  for (let at = 0; at < mono.length; ++at) {
    let sum = 0;
    for (const channel of channels) sum = Math.fround(sum + channel[at]);
    mono[at] = sum / channels.length;
    left += mono[at] * mono[at];
  }
  const energies = channels.map((channel) => channel.reduce((sum, value) => sum + value * value, 0));
  const total = energies.reduce((sum, one) => sum + one, 0);
  if (!(left < (CANCELLED * total) / channels.length ** 2)) return mono;
  return channels[energies.indexOf(Math.max(...energies))];
}

/** Samples at another rate: below the lower of both rates' bands nothing is lost and nothing folds over. */
export function resample(samples: Float32Array, from: number, to: number): Float32Array {
  const step = from / to;
  const length = Math.round(samples.length / step);
  const cutoff = PASSBAND * Math.min(1, 1 / step);
  const reach = CROSSINGS / cutoff;
  const table = sincTable();
  const out = new Float32Array(length);
  for (let i = 0; i < length; ++i) {
    const middle = i * step;
    const first = Math.max(Math.ceil(middle - reach), 0);
    const last = Math.min(Math.floor(middle + reach), samples.length - 1);
    let sum = 0;
    for (let j = first; j <= last; ++j) {
      const place = Math.abs(j - middle) * cutoff * PER_CROSSING;
      const entry = Math.min(Math.trunc(place), CROSSINGS * PER_CROSSING);
      sum += samples[j] * (table[entry] + (place - entry) * (table[entry + 1] - table[entry]));
    }
    out[i] = sum * cutoff;
  }
  return out;
}

let madeTable: Float32Array | null = null;

/** The right half of the windowed sinc, with a zero behind its end. */
function sincTable(): Float32Array {
  if (madeTable) return madeTable;
  const last = CROSSINGS * PER_CROSSING;
  const values = new Float32Array(last + 2);
  for (let i = 0; i <= last; ++i) {
    const x = i / PER_CROSSING;
    const ratio = x / CROSSINGS;
    const window = besselI0(BETA * Math.sqrt(1 - ratio * ratio)) / besselI0(BETA);
    values[i] = window * (i === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
  }
  madeTable = values;
  return values;
}

function besselI0(x: number): number {
  let [sum, term] = [1, 1];
  for (let k = 1; k < 60; ++k) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}
