/** Everything this package throws on purpose: one line of what was found, one of what to do about it. */
export class DfstreamError extends Error {
  /**
   * @param {"usage" | "model" | "audio" | "runtime"} kind
   * @param {string} message
   * @param {{ hint?: string, cause?: unknown }} [more]
   */
  constructor(kind, message, { hint, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "DfstreamError";
    this.kind = kind;
    this.hint = hint;
  }
}

/** @param {unknown} error */
export const textOf = (error) => (error instanceof Error ? error.message : String(error));
