/**
 * manifest.json, validated once: every relation that the code relies on.
 *
 * Knows the bundle format, version 2. Knows nothing of where files lie or of what graphs compute.
 */
import { PackageError } from "./errors.js";
import { Field } from "./fields.js";
import { checkDecoder, type Geometry, type GraphSpec, readGraph } from "./graphs.js";

export type Modality = "image" | "audio";

interface FileEntry {
  readonly size: number;
  readonly sha256: string;
}

export interface EncoderSpec {
  readonly name: string;
  readonly kind: string;
  readonly modality: Modality;
  readonly graph: GraphSpec;
  /** The token that each row of features stands for. */
  readonly placeholder: number;
  readonly projectors: readonly string[];
  /** Of the kind, which reads them. */
  readonly constants: Field;
}

/** Which adapter and projectors a conversation takes that has these modalities. */
export interface Rule {
  readonly image: boolean;
  readonly audio: boolean;
  readonly adapter: string;
  readonly adapterId: number;
  /** Numbers of projectors, by encoder. */
  readonly projectors: ReadonlyMap<string, number>;
}

interface GenerationDefaults {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
}

export const MANIFEST = "manifest.json";
export const HOST = "host.json";
export const MAX_MANIFEST = 4 << 20; // bytes

const NO_ADAPTER = "none";
const MAX_POSITIONS = 1 << 24;
const MAX_FILE = 2 ** 45;

export class Manifest {
  readonly name: string;
  readonly files: ReadonlyMap<string, FileEntry>;
  readonly tokenizer: string;
  readonly geometry: Geometry;
  readonly decoder: GraphSpec;
  readonly cacheDtype: "float32" | "int8";
  readonly eos: ReadonlySet<number>;
  readonly encoders: readonly EncoderSpec[];
  readonly rules: readonly Rule[];
  readonly limits: { readonly imagePixels: number; readonly audioSeconds: number };
  readonly generation: GenerationDefaults;

  /** Throws PackageError for a text that is no manifest of a package. */
  constructor(text: string) {
    const root = Field.parse(text, MANIFEST);
    root.get("format").oneOf(["phirt-bundle"]);
    if (root.get("version").integer(1, 1000) !== 2) {
      root.get("version").refuse("2; make a package with 'phirt export ... --target web'");
    }
    this.name = root.get("name").text(200);
    this.files = readFiles(root.get("files"));
    if (!this.files.has(HOST)) {
      throw new PackageError(
        `'${this.name}' is a bundle and no package: it has no ${HOST}; make one with 'phirt export ... --target web'`,
      );
    }
    const listed = (name: Field) =>
      this.files.has(name.text(255)) ? name.text() : name.refuse("one of the files");
    this.tokenizer = listed(root.get("tokenizer"));
    this.geometry = readGeometry(root.get("geometry"), root.get("limits"));
    const graphs = new Map(
      root
        .get("graphs")
        .members(1024)
        .map(([name, one]) => [name, readGraph(one, listed)]),
    );
    this.decoder = graphs.get("decoder") ?? root.get("graphs").get("decoder").refuse("a graph");
    this.cacheDtype = checkDecoder(this.decoder, this.geometry);
    const ends = root.get("tokens").get("eos").items(64);
    this.eos = new Set(ends.map((id) => id.integer(0, this.geometry.vocabSize - 1)));
    if (!this.eos.size) root.get("tokens").get("eos").refuse("1 to 64 ids");
    this.encoders = readEncoders(root.get("encoders"), graphs, this.geometry.vocabSize);
    this.rules = readRules(root, this.encoders);
    const limits = root.get("limits");
    this.limits = {
      imagePixels: limits.get("image_pixels").integer(1, 2 ** 34),
      audioSeconds: limits.get("audio_seconds").real(0.05, 86400),
    };
    this.generation = readGeneration(root.get("generation"));
  }

  /** The first rule that fits a conversation with these modalities. */
  ruleFor(image: boolean, audio: boolean): Rule {
    const rule = this.rules.find((one) => (!one.image || image) && (!one.audio || audio));
    return rule as Rule; // the last one fits always
  }

  encoderFor(modality: Modality): EncoderSpec | undefined {
    return this.encoders.find((encoder) => encoder.modality === modality);
  }
}

function readFiles(list: Field): Map<string, FileEntry> {
  const files = new Map<string, FileEntry>();
  for (const [name, entry] of list.members(1 << 14)) {
    const parts = name.split("/");
    // biome-ignore lint/suspicious/noControlCharactersInRegex: it is them that are refused
    const odd = name.length > 255 || /[\x00-\x1f\\:]/.test(name);
    if (odd || parts.some((part) => part === "" || part === "." || part === "..")) {
      entry.refuse(`relative names inside the package, not ${JSON.stringify(name.slice(0, 80))}`);
    }
    const sha256 = entry.get("sha256").text(64);
    if (!/^[0-9a-f]{64}$/.test(sha256)) entry.get("sha256").refuse("64 hexadecimal digits");
    files.set(name, { size: entry.get("size").integer(0, MAX_FILE), sha256 });
  }
  return files;
}

function readGeometry(g: Field, limits: Field): Geometry {
  const whole = g.get("context").integer(1, MAX_POSITIONS);
  const context = limits.get("context").integer(1, whole, whole);
  const rope = g.get("rope");
  let [originalContext, hasLongRegime] = [context, false];
  if (rope.exists) {
    const [short, long] = ["short_factor", "long_factor"].map((key) =>
      rope
        .get(key)
        .items(1024)
        .map((factor) => factor.real(1e-6, 1e6)),
    ) as [number[], number[]];
    if (short.length !== long.length) rope.get("long_factor").refuse("as many as 'short_factor'");
    originalContext = rope.get("original_context").integer(1, MAX_POSITIONS);
    hasLongRegime = context > originalContext && short.some((factor, index) => factor !== long[index]);
  }
  return {
    numLayers: g.get("num_layers").integer(1, 1024),
    numKvHeads: g.get("num_kv_heads").integer(1, 1024),
    headDim: g.get("head_dim").integer(1, 1024),
    hiddenSize: g.get("hidden_size").integer(1, 1 << 17),
    vocabSize: g.get("vocab_size").integer(2, 1 << 21),
    context,
    originalContext,
    hasLongRegime,
  };
}

function readEncoders(list: Field, graphs: ReadonlyMap<string, GraphSpec>, vocabSize: number): EncoderSpec[] {
  const encoders: EncoderSpec[] = [];
  for (const [name, field] of list.members(16)) {
    const modality = field.get("modality").oneOf(["image", "audio"]);
    if (encoders.some((one) => one.modality === modality))
      field.get("modality").refuse("one encoder for each modality");
    const part = field.get("graph").text(200);
    const graph = graphs.get(part);
    if (graph === undefined || part === "decoder" || encoders.some((one) => one.graph === graph)) {
      return field.get("graph").refuse("a graph of its own");
    }
    if (!graph.outputs.length) field.get("graph").refuse("a graph with an output");
    const projectors = field
      .get("projectors")
      .items(16)
      .map((one) => one.text(200));
    if (!projectors.length) field.get("projectors").refuse("1 to 16 names");
    const placeholder = field.get("placeholder").integer(0, vocabSize - 1);
    const kind = field.get("kind").text(200);
    encoders.push({
      name,
      kind,
      modality,
      graph,
      placeholder,
      projectors,
      constants: field.get("constants"),
    });
  }
  return encoders;
}

function readRules(root: Field, encoders: readonly EncoderSpec[]): Rule[] {
  const ids = new Map([[NO_ADAPTER, 0]]);
  for (const [name, field] of root.get("adapters").members(255))
    ids.set(name, field.get("id").integer(1, 255));
  const rules = root
    .get("rules")
    .items(64)
    .map((field): Rule => {
      const wanted = field
        .get("modalities")
        .items(2)
        .map((one) => one.oneOf(["image", "audio"]));
      const adapter = field.get("adapter").exists ? field.get("adapter").text(200) : NO_ADAPTER;
      const projectors = new Map<string, number>();
      for (const [encoder, projector] of field.get("projectors").members(16)) {
        const names = encoders.find((one) => one.name === encoder)?.projectors ?? [];
        const number = names.indexOf(projector.text(200));
        if (number < 0) projector.refuse("a projector of an encoder");
        projectors.set(encoder, number);
      }
      return {
        image: wanted.includes("image"),
        audio: wanted.includes("audio"),
        adapter,
        adapterId: ids.get(adapter) ?? field.get("adapter").refuse("one of 'adapters'"),
        projectors,
      };
    });
  const last = rules.at(-1);
  if (last === undefined || last.image || last.audio)
    root.get("rules").refuse("1 to 64, the last of which fits always");
  return rules;
}

function readGeneration(field: Field): GenerationDefaults {
  return {
    temperature: field.get("temperature").real(0, 1000, 0),
    topK: field.get("top_k").integer(0, 1 << 22, 0),
    topP: field.get("top_p").real(1e-9, 1, 1),
    minP: field.get("min_p").real(0, 1, 0),
    repetitionPenalty: field.get("repetition_penalty").real(0.01, 100, 1),
  };
}
