/**
 * A package's files in the browser's own storage (the origin private file system), by their digests, so that a second
 * start fetches nothing and two packages share what they have in common.
 *
 * A file is there as a whole or not at all: what was interrupted never gets its name. Knows bytes and digests; knows no
 * addresses.
 */
import { MemoryError, PackageError } from "../host/errors.js";

const FOLDER = "phirt-files";
const PACKAGES = "phirt-packages";
const [CHANGING, READING] = ["phirt-files", "phirt-package"]; // locks, which all pages of this origin share

export class FileStore {
  private constructor(
    private readonly files: FileSystemDirectoryHandle,
    private readonly packages: FileSystemDirectoryHandle,
  ) {}

  /** Null where the browser gives no storage that can be written (as in some private windows, and in older ones). */
  static async open(): Promise<FileStore | null> {
    try {
      if (!("createWritable" in FileSystemFileHandle.prototype) || !navigator.locks) return null;
      const root = await navigator.storage.getDirectory();
      const open = (name: string) => root.getDirectoryHandle(name, { create: true });
      return new FileStore(await open(FOLDER), await open(PACKAGES));
    } catch {
      return null; // then everything is fetched at each start
    }
  }

  /** The file of this digest; null where it is not there with this size. */
  async find(sha256: string, size: number): Promise<File | null> {
    try {
      const file = await (await this.files.getFileHandle(sha256)).getFile();
      return file.size === size ? file : null;
    } catch {
      return null; // there is none of this name
    }
  }

  /**
   * Keeps a file that comes in pieces, and returns it. Throws PackageError where its bytes are not those of the digest,
   * MemoryError where there is no room.
   */
  async keep(sha256: string, name: string, pieces: AsyncIterable<Uint8Array<ArrayBuffer>>): Promise<File> {
    const partial = `${sha256}.partial`;
    try {
      const handle = await this.files.getFileHandle(partial, { create: true });
      const stream = await handle.createWritable();
      try {
        for await (const piece of pieces) await stream.write(piece);
        await stream.close();
      } catch (error) {
        await stream.abort().catch(() => undefined); // the first error is the one to tell
        throw error;
      }
      const written = await handle.getFile();
      await requireDigest(written, sha256, name);
      await this.rename(handle, partial, sha256);
      return await (await this.files.getFileHandle(sha256)).getFile();
    } catch (error) {
      await this.files.removeEntry(partial).catch(() => undefined);
      if (error instanceof DOMException && error.name === "QuotaExceededError") {
        throw new MemoryError(
          `the browser has no room left for ${name}; free some space, or allow this page more`,
        );
      }
      throw error;
    }
  }

  /** The manifest of the package that was last opened from an address; null where none was. */
  async manifestOf(address: string): Promise<string | null> {
    try {
      return await (await (await this.packages.getFileHandle(await keyOf(address))).getFile()).text();
    } catch {
      return null; // there is none of this name
    }
  }

  async keepManifest(address: string, text: string): Promise<void> {
    const handle = await this.packages.getFileHandle(await keyOf(address), { create: true });
    const stream = await handle.createWritable();
    await stream.write(text);
    await stream.close();
  }

  /** Does what changes files, while no other page does. */
  async alone<T>(work: () => Promise<T>): Promise<T> {
    return navigator.locks.request(CHANGING, work);
  }

  /** Removes what no package that is known here has among its files, unless another page reads a package. */
  async removeUnused(): Promise<void> {
    await navigator.locks.request(READING, { ifAvailable: true }, async (lock) => {
      if (lock) await this.removeAllUnused();
    });
  }

  /** Keeps files from being removed until what is returned is called, or this page is gone. */
  async hold(): Promise<() => void> {
    return new Promise((held, reject) => {
      navigator.locks
        .request(READING, { mode: "shared" }, () => new Promise<void>((release) => held(release)))
        .catch(reject);
    });
  }

  private async removeAllUnused(): Promise<void> {
    const used = new Set<string>();
    for await (const handle of this.packages.values()) {
      if (handle.kind !== "file") continue;
      const text = await (await (handle as FileSystemFileHandle).getFile()).text();
      for (const digest of text.match(/\b[0-9a-f]{64}\b/g) ?? []) used.add(digest);
    }
    const names: string[] = [];
    for await (const name of this.files.keys()) names.push(name);
    for (const name of names) if (!used.has(name)) await this.files.removeEntry(name).catch(() => undefined);
  }

  private async rename(handle: FileSystemFileHandle, from: string, to: string): Promise<void> {
    const movable = handle as FileSystemFileHandle & { move?(name: string): Promise<void> };
    if (movable.move) {
      await movable.move(to);
      return;
    }
    const target = await this.files.getFileHandle(to, { create: true });
    await (await handle.getFile()).stream().pipeTo(await target.createWritable());
    await this.files.removeEntry(from);
  }
}

/** Throws PackageError where a file's bytes are not those of the digest. */
export async function requireDigest(file: Blob, sha256: string, name: string): Promise<void> {
  if ((await hex(await file.arrayBuffer())) !== sha256) {
    throw new PackageError(`${name} is not what the manifest says; fetch a fresh copy of the package`);
  }
}

function keyOf(address: string): Promise<string> {
  return hex(new TextEncoder().encode(address));
}

async function hex(bytes: BufferSource): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
