/**
 * Where a package's files come from: a folder, an address, a picker. Sizes are compared with the manifest.
 */
import { PackageError } from "./errors.js";
import { HOST, type Manifest } from "./manifest.js";

export interface PackageFiles {
  /** A file's bytes. Throws PackageError where it is not there. */
  read(name: string): Promise<Uint8Array<ArrayBuffer>>;
  /** How many bytes it has; null where it is not there. */
  size(name: string): Promise<number | null>;
}

const FRESH = "fetch a fresh copy of the package";
const DECODER = new TextDecoder("utf-8", { fatal: true });

/** A text file of the package, of at most so many bytes. */
export async function readText(files: PackageFiles, name: string, maxBytes: number): Promise<string> {
  const bytes = await files.read(name);
  if (bytes.length > maxBytes) {
    throw new PackageError(
      `${name} has ${bytes.length} bytes, accepted: at most ${maxBytes}; fetch a fresh copy`,
    );
  }
  try {
    return DECODER.decode(bytes);
  } catch {
    throw new PackageError(`${name} is no text in UTF-8; fetch a fresh copy of the package`);
  }
}

/** Throws PackageError where a file that the manifest lists is missing, or has another size. */
export async function checkSizes(files: PackageFiles, manifest: Manifest): Promise<void> {
  const names = [manifest.tokenizer, HOST];
  for (const graph of [manifest.decoder, ...manifest.encoders.map((encoder) => encoder.graph)]) {
    names.push(graph.file, ...graph.data);
  }
  for (const name of names) {
    const [found, wanted] = [await files.size(name), manifest.files.get(name)?.size];
    if (found === null) throw new PackageError(`${name} is missing though the manifest lists it; ${FRESH}`);
    if (found !== wanted)
      throw new PackageError(`${name} has ${found} bytes, the manifest says ${wanted}; ${FRESH}`);
  }
}
