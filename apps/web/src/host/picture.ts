/**
 * Pictures as arrays: resized exactly as Pillow does it, and as torch's bicubic interpolation does it.
 *
 * Knows 8-bit RGB and floats. Knows nothing of what an encoder wants.
 */

/** 8-bit red, green, blue, rows from the top. */
export interface Picture {
  readonly width: number;
  readonly height: number;
  readonly rgb: Uint8Array;
}

export type Filter = "bilinear" | "bicubic" | "lanczos";

// Weights are whole numbers with this many bits behind the point, as Pillow rounds them.
const FRACTION_BITS = 22;
const HALF = 1 << (FRACTION_BITS - 1);
const SUPPORT: Readonly<Record<Filter, number>> = { bilinear: 1, bicubic: 2, lanczos: 3 };

/** A canvas's pixels as a picture, its transparency on white. */
export function pictureOfRgba(rgba: Uint8Array | Uint8ClampedArray, width: number, height: number): Picture {
  const rgb = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; to < rgb.length; from += 4, to += 3) {
    const alpha = rgba[from + 3];
    for (let c = 0; c < 3; ++c) {
      rgb[to + c] =
        alpha === 255 ? rgba[from + c] : Math.round((rgba[from + c] * alpha + 255 * (255 - alpha)) / 255);
    }
  }
  return { width, height, rgb };
}

/** Convolution with a filter that widens where the picture shrinks, in 8 bits between the two directions. */
export function resize(picture: Picture, width: number, height: number, filter: Filter): Picture {
  // Pillow 13 begins with the height where that shrinks much more than the width; between the two directions pixels
  // are rounded, so the order shows.
  if (height < picture.height && picture.height - height > 2 * (picture.width - width)) {
    const lower = resizeDown(picture, height, filter);
    return width === lower.width ? lower : resizeAcross(lower, width, filter);
  }
  const across = width === picture.width ? picture : resizeAcross(picture, width, filter);
  return height === across.height ? across : resizeDown(across, height, filter);
}

/**
 * [height, width, 3] to float [size, size, 3]: cubic convolution (a = -0.75) without widening, borders repeated.
 */
export function resizeCubic(picture: Picture, size: number): Float32Array {
  let values = Float32Array.from(picture.rgb);
  const { width, height } = picture;
  if (height !== size) values = cubicAlong(values, 1, height, width * 3, size);
  if (width !== size) values = cubicAlong(values, size, width, 3, size);
  return values;
}

/** A square of a picture, colour by colour: what each value becomes by its colour's table of 256. */
export function planes(
  picture: Picture,
  left: number,
  top: number,
  side: number,
  tables: readonly Float32Array[],
  out: Float32Array,
): void {
  for (let y = 0, to = 0; y < side; ++y) {
    let from = 3 * ((top + y) * picture.width + left);
    for (let x = 0; x < side; ++x, ++to, from += 3) {
      for (let c = 0; c < 3; ++c) out[c * side * side + to] = tables[c][picture.rgb[from + c]];
    }
  }
}

/** What one output pixel is made of: input pixels from `first` on, with these weights. */
interface Taps {
  readonly first: number;
  readonly weights: Int32Array;
}

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

function weightAt(filter: Filter, x: number): number {
  const distance = Math.abs(x);
  if (filter === "bilinear") return distance < 1 ? 1 - distance : 0;
  if (filter === "lanczos") return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
  const a = -0.5;
  if (distance < 1) return ((a + 2) * distance - (a + 3)) * distance * distance + 1;
  return distance < 2 ? (((distance - 5) * distance + 8) * distance - 4) * a : 0;
}

function tapsFor(from: number, to: number, filter: Filter): Taps[] {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const reach = SUPPORT[filter] * stretch;
  return Array.from({ length: to }, (_, out) => {
    const middle = (out + 0.5) * scale;
    const first = Math.max(Math.trunc(middle - reach + 0.5), 0);
    const end = Math.min(Math.trunc(middle + reach + 0.5), from);
    const exact: number[] = [];
    let sum = 0;
    for (let at = first; at < end; ++at) {
      exact.push(weightAt(filter, (at - middle + 0.5) * (1 / stretch)));
      sum += exact[exact.length - 1];
    }
    const weights = Int32Array.from(exact, (weight) => {
      const scaled = (sum !== 0 ? weight / sum : weight) * (1 << FRACTION_BITS);
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    return { first, weights };
  });
}

function rounded(sum: number): number {
  return Math.min(Math.max(sum >> FRACTION_BITS, 0), 255);
}

function resizeAcross(picture: Picture, width: number, filter: Filter): Picture {
  const taps = tapsFor(picture.width, width, filter);
  const out = new Uint8Array(3 * width * picture.height);
  for (let y = 0, to = 0; y < picture.height; ++y) {
    const row = 3 * y * picture.width;
    for (let x = 0; x < width; ++x) {
      const { first, weights } = taps[x];
      let [red, green, blue] = [HALF, HALF, HALF];
      for (let tap = 0, at = row + 3 * first; tap < weights.length; ++tap, at += 3) {
        const weight = weights[tap];
        red += picture.rgb[at] * weight;
        green += picture.rgb[at + 1] * weight;
        blue += picture.rgb[at + 2] * weight;
      }
      out[to++] = rounded(red);
      out[to++] = rounded(green);
      out[to++] = rounded(blue);
    }
  }
  return { width, height: picture.height, rgb: out };
}

function resizeDown(picture: Picture, height: number, filter: Filter): Picture {
  const taps = tapsFor(picture.height, height, filter);
  const row = 3 * picture.width;
  const out = new Uint8Array(row * height);
  const sums = new Int32Array(row);
  for (let y = 0; y < height; ++y) {
    const { first, weights } = taps[y];
    sums.fill(HALF);
    for (let tap = 0; tap < weights.length; ++tap) {
      const weight = weights[tap];
      const from = (first + tap) * row;
      for (let at = 0; at < row; ++at) sums[at] += picture.rgb[from + at] * weight;
    }
    for (let at = 0; at < row; ++at) out[y * row + at] = rounded(sums[at]);
  }
  return { width: picture.width, height, rgb: out };
}

function cubic(x: number): number {
  const a = -0.75;
  return x <= 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : ((x - 5) * x + 8) * x * a - 4 * a;
}

/** One axis of cubic convolution over [outer, length, inner]. */
function cubicAlong(
  values: Float32Array,
  outer: number,
  length: number,
  inner: number,
  size: number,
): Float32Array<ArrayBuffer> {
  const out = new Float32Array(outer * size * inner);
  for (let i = 0; i < size; ++i) {
    const position = (i + 0.5) * (length / size) - 0.5;
    const first = Math.floor(position);
    const weights = [-1, 0, 1, 2].map((tap) => Math.fround(cubic(Math.abs(position - first - tap))));
    const index = [-1, 0, 1, 2].map((tap) => Math.min(Math.max(first + tap, 0), length - 1));
    for (let o = 0; o < outer; ++o) {
      for (let k = 0; k < inner; ++k) {
        let sum = 0;
        for (let tap = 0; tap < 4; ++tap) {
          sum = Math.fround(sum + Math.fround(values[(o * length + index[tap]) * inner + k] * weights[tap]));
        }
        out[(o * size + i) * inner + k] = sum;
      }
    }
  }
  return out;
}
