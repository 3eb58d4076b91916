/** A package in a folder of this machine. */
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { PackageError } from "../host/errors.js";
import type { PackageFiles } from "../host/files.js";

export function folderFiles(folder: string): PackageFiles & { pathOf(name: string): string } {
  const pathOf = (name: string) => join(folder, name);
  return {
    pathOf,
    async read(name) {
      try {
        return new Uint8Array(await readFile(pathOf(name)));
      } catch (error) {
        const why = (error as NodeJS.ErrnoException).code ?? String(error);
        throw new PackageError(`${pathOf(name)} cannot be read (${why}); name the folder of a package`);
      }
    },
    async size(name) {
      const found = await stat(pathOf(name)).catch(() => null); // whatever the reason, it cannot be used
      return found?.isFile() ? found.size : null;
    },
  };
}
