/** The kind `fixed_image`: pictures stretched, or cut, to one size. Formulas as in phirt/encoders/fixed_image.py. */
import { type ImageKind, type Prepared, refusePicture } from "./encoder_kind.js";
import type { Field } from "./fields.js";
import { type Filter, type Picture, planes, resize } from "./picture.js";

const MAX_ASPECT = 50;

export class FixedImage implements ImageKind {
  private readonly size: number;
  private readonly tokens: number;
  private readonly filter: Filter;
  private readonly isCut: boolean;
  private readonly tables: readonly Float32Array[]; // what each of 256 values becomes, by colour

  constructor(constants: Field) {
    this.size = constants.get("size").integer(1, 4096);
    this.tokens = constants.get("tokens").integer(1, 1 << 16);
    const means = constants
      .get("mean")
      .items(3)
      .map((one) => Math.fround(one.real(-10, 10)));
    const deviations = constants
      .get("std")
      .items(3)
      .map((one) => Math.fround(one.real(1e-3, 10)));
    if (means.length !== 3 || deviations.length !== 3)
      constants.get("mean").refuse("three numbers, and three of 'std'");
    this.filter = constants.get("resample").oneOf(["bilinear", "bicubic", "lanczos"], "bicubic");
    this.isCut = constants.get("fit").oneOf(["stretch", "crop"], "stretch") === "crop";
    this.tables = means.map((mean, c) =>
      Float32Array.from({ length: 256 }, (_, value) =>
        Math.fround(Math.fround(Math.fround(value / 255) - mean) / deviations[c]),
      ),
    );
  }

  prepare(picture: Picture): Prepared {
    const { size } = this;
    let [width, height] = [size, size];
    if (this.isCut) {
      const [narrow, wide] = [picture.width, picture.height].sort((a, b) => a - b);
      if (wide > MAX_ASPECT * narrow) refusePicture(picture, ", too long and narrow for this model; crop it");
      const other = Math.trunc((size * wide) / narrow);
      if (picture.width <= picture.height) height = other;
      else width = other;
    }
    const [left, top] = [Math.trunc((width - size) / 2), Math.trunc((height - size) / 2)];
    const scaled = resize(picture, width, height, this.filter);
    const data = new Float32Array(3 * size * size);
    planes(scaled, left, top, size, this.tables, data);
    return {
      numTokens: this.tokens,
      runs: [{ pixel_values: { dtype: "float32", shape: [1, 3, size, size], data } }],
    };
  }
}
