/** Power spectra of short frames of any length, and filters over their bins. */

export class PowerSpectrum {
  private readonly cosines: Float64Array;
  private readonly sines: Float64Array;
  private readonly real: Float64Array;
  private readonly imaginary: Float64Array;
  private readonly frame: Float64Array;
  private readonly sumsReal: Float64Array;
  private readonly sumsImaginary: Float64Array;

  constructor(private readonly size: number) {
    const arrays = Array.from({ length: 7 }, () => new Float64Array(size));
    [this.cosines, this.sines, this.real, this.imaginary, this.frame, this.sumsReal, this.sumsImaginary] =
      arrays as [
        Float64Array,
        Float64Array,
        Float64Array,
        Float64Array,
        Float64Array,
        Float64Array,
        Float64Array,
      ];
    for (let k = 0; k < size; ++k) {
      this.cosines[k] = Math.cos((-2 * Math.PI * k) / size);
      this.sines[k] = Math.sin((-2 * Math.PI * k) / size);
    }
  }

  /** Squares of magnitudes of bins 0 to size / 2, of a frame that is filled up with zeros. */
  of(frame: Float64Array, power: Float64Array): void {
    this.frame.fill(0);
    this.frame.set(frame);
    this.transform(0, 1, 0, this.size);
    for (let k = 0; k <= this.size / 2; ++k) power[k] = this.real[k] ** 2 + this.imaginary[k] ** 2;
  }

  /** Cooley and Tukey's: transforms of every radix-th value, then sums of them turned by roots of unity. */
  private transform(from: number, stride: number, to: number, count: number): void {
    if (count === 1) {
      this.real[to] = this.frame[from];
      this.imaginary[to] = 0;
      return;
    }
    let radix = 2;
    while (count % radix) radix += 1;
    const [rest, turn] = [count / radix, this.size / count];
    for (let r = 0; r < radix; ++r) this.transform(from + r * stride, stride * radix, to + r * rest, rest);
    for (let k = 0; k < rest; ++k) {
      for (let q = 0; q < radix; ++q) {
        let [re, im] = [this.real[to + k], this.imaginary[to + k]];
        for (let r = 1; r < radix; ++r) {
          const [a, b] = [this.real[to + k + r * rest], this.imaginary[to + k + r * rest]];
          const root = ((k + q * rest) * r * turn) % this.size;
          re += a * this.cosines[root] - b * this.sines[root];
          im += a * this.sines[root] + b * this.cosines[root];
        }
        this.sumsReal[q] = re;
        this.sumsImaginary[q] = im;
      }
      for (let q = 0; q < radix; ++q) {
        this.real[to + k + q * rest] = this.sumsReal[q];
        this.imaginary[to + k + q * rest] = this.sumsImaginary[q];
      }
    }
  }
}

/** So many values from the first to the last, in equal steps. */
export function evenly(first: number, last: number, count: number): Float64Array {
  const step = (last - first) / (count - 1);
  return Float64Array.from({ length: count }, (_, index) =>
    index === count - 1 ? last : first + step * index,
  );
}

/** Adds the power of bins from `first` to before `end`, each weighted for each filter: `filters` is [bins, count]. */
export function filtered(
  power: Float64Array,
  filters: Float64Array,
  sums: Float64Array,
  first: number,
  end: number,
): void {
  sums.fill(0);
  for (let bin = first; bin < end; ++bin) {
    for (let m = 0; m < sums.length; ++m) sums[m] += power[bin] * filters[bin * sums.length + m];
  }
}
