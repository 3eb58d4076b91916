/**
 * A package's files for a page: fetched from an address of its own origin, or picked from the disk, and kept in the
 * browser's storage. Fetched are only files that the package lists and that are not there yet.
 *
 * Knows addresses and files. Knows nothing of models.
 */
import { PackageError } from "../host/errors.js";
import type { PackageFiles } from "../host/files.js";
import { MANIFEST, MAX_MANIFEST, Manifest } from "../host/manifest.js";
import type { Progress, Source } from "./protocol.js";
import { FileStore, requireDigest } from "./store.js";

type Tell = (progress: Progress) => void;
type Bytes = Uint8Array<ArrayBuffer>;

/** Files of a package, which stay until they are released. */
export interface HeldFiles extends PackageFiles {
  release(): void;
}

/** The files of a package, all of them at hand when this ends. Throws PackageError. */
export async function openPackage(source: Source, tell: Tell): Promise<HeldFiles> {
  const store = await FileStore.open();
  const origin: Origin = "url" in source ? new Address(source.url) : new Picked(source.picked);
  return store ? store.alone(() => gathered(origin, store, tell)) : gathered(origin, null, tell);
}

async function gathered(origin: Origin, store: FileStore | null, tell: Tell): Promise<HeldFiles> {
  const text = await manifestText(origin, store);
  const manifest = new Manifest(text);
  const files = new Map<string, Blob>();
  let loaded = 0;
  const total = [...manifest.files.values()].reduce((sum, entry) => sum + entry.size, 0);
  for (const [name, entry] of manifest.files) {
    const kept = await store?.find(entry.sha256, entry.size);
    const start = loaded;
    const pieces = counted(origin, name, entry.size, (bytes) =>
      tell({ file: name, loaded: start + bytes, total, isFetched: true }),
    );
    files.set(name, kept ?? (await fetched(store, entry.sha256, name, pieces)));
    loaded += entry.size;
    tell({ file: name, loaded, total, isFetched: !kept });
  }
  files.set(MANIFEST, new Blob([text]));
  await store?.keepManifest(origin.address, text);
  await store?.removeUnused();
  const release = (await store?.hold()) ?? (() => undefined);
  return { ...blobFiles(files), release };
}

async function fetched(
  store: FileStore | null,
  sha256: string,
  name: string,
  pieces: AsyncIterable<Bytes>,
): Promise<Blob> {
  if (store) return store.keep(sha256, name, pieces);
  const parts: Bytes[] = [];
  for await (const piece of pieces) parts.push(piece);
  const blob = new Blob(parts);
  await requireDigest(blob, sha256, name);
  return blob;
}

/** The manifest as it is at its origin now; as it was kept where that cannot be reached. */
async function manifestText(origin: Origin, store: FileStore | null): Promise<string> {
  try {
    const parts: Bytes[] = [];
    for await (const piece of counted(origin, MANIFEST, MAX_MANIFEST, () => undefined)) parts.push(piece);
    return await new Blob(parts).text();
  } catch (error) {
    const kept = await store?.manifestOf(origin.address);
    if (kept === undefined || kept === null) throw error;
    return kept;
  }
}

function blobFiles(files: ReadonlyMap<string, Blob>): PackageFiles {
  return {
    async read(name) {
      const blob = files.get(name);
      if (!blob) throw new PackageError(`the package has no file ${name}; export it again`);
      return new Uint8Array(await blob.arrayBuffer());
    },
    async size(name) {
      return files.get(name)?.size ?? null;
    },
  };
}

/** Pieces of a file, which is refused as soon as it has more than `most` bytes. */
async function* counted(
  origin: Origin,
  name: string,
  most: number,
  tell: (bytes: number) => void,
): AsyncGenerator<Bytes> {
  let bytes = 0;
  for await (const piece of origin.pieces(name)) {
    bytes += piece.length;
    if (bytes > most) {
      throw new PackageError(`${name} has more than ${most} bytes; fetch a fresh copy of the package`);
    }
    tell(bytes);
    yield piece;
  }
}

interface Origin {
  /** What the package is known by. */
  readonly address: string;
  pieces(name: string): AsyncIterable<Bytes>;
}

class Address implements Origin {
  readonly address: string;

  constructor(url: string) {
    const address = new URL(url.endsWith("/") ? url : `${url}/`);
    if (address.origin !== location.origin) {
      throw new PackageError(
        `the package is at ${address.origin}, accepted: this page's own origin; serve it here`,
      );
    }
    this.address = address.href;
  }

  async *pieces(name: string): AsyncGenerator<Bytes> {
    const path = name.split("/").map(encodeURIComponent).join("/");
    const response = await fetch(new URL(path, this.address), {
      cache: "no-cache",
      credentials: "same-origin",
    }).catch(
      () => null, // the browser says nothing of the reason
    );
    if (!response?.ok || !response.body) {
      const status = response ? `the server says ${response.status}` : "the server cannot be reached";
      throw new PackageError(
        `${name} cannot be fetched from ${this.address}: ${status}; serve the package there`,
      );
    }
    yield* piecesOf(response.body);
  }
}

/** What a stream gives; it ends when nobody wants more. */
async function* piecesOf(stream: ReadableStream<Bytes>): AsyncGenerator<Bytes> {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => undefined); // one that has failed says so above
  }
}

class Picked implements Origin {
  private readonly files: ReadonlyMap<string, File>;
  readonly address: string;

  constructor(files: readonly File[]) {
    // By their place in the folder that was picked, as the manifest names them.
    this.files = new Map(
      files.map((file) => [file.webkitRelativePath.split("/").slice(1).join("/") || file.name, file]),
    );
    this.address = `picked:${files[0]?.webkitRelativePath.split("/")[0] ?? ""}`;
  }

  async *pieces(name: string): AsyncGenerator<Bytes> {
    const file = this.files.get(name);
    if (!file) throw new PackageError(`${name} is not among the picked files; pick the folder of a package`);
    yield* piecesOf(file.stream());
  }
}
