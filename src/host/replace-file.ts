/** Replacing a file in one step: a reader sees the old text or the new one, also after a crash. */
import { randomBytes } from 'node:crypto';
import { chmod, mkdir, open, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';

/**
 * Writes a temporary file beside `path`, syncs it and renames it. The mode is exactly `mode`, whatever the umask; a
 * missing directory is made with 0755.
 *
 * @throws the system's error; nothing is left beside the file, which is as it was.
 */
export async function replaceFile(path: string, text: string, mode: number): Promise<void> {
  const temporary = temporaryBeside(path);
  try {
    await ensureDirectory(dirname(path));
    const file = await open(temporary, 'wx', mode);
    try {
      await file.chmod(mode);
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw error;
  }
}

/** Finds out whether {@link replaceFile} can work: a file is created beside `path` and removed. @throws likewise. */
export async function tryReplacing(path: string): Promise<void> {
  const probe = temporaryBeside(path);
  await ensureDirectory(dirname(path));
  await (await open(probe, 'wx', 0o600)).close();
  await rm(probe);
}

function temporaryBeside(path: string): string {
  return join(dirname(path), `.${basename(path)}.${process.pid}.${randomBytes(4).toString('hex')}`);
}

async function ensureDirectory(directory: string): Promise<void> {
  // mkdir answers with the first directory that it made: only then is the mode ours to set.
  if ((await mkdir(directory, { recursive: true, mode: 0o755 })) !== undefined) await chmod(directory, 0o755);
}
