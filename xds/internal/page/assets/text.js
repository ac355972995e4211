// text writes figures for people.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

/** number groups the digits of a count. */
export const number = (n) => whole.format(n);

/** percent writes a share of 0 to 1. */
export const percent = (share) => `${Math.round(100 * share)} %`;

/** ms writes milliseconds. */
export function ms(n) {
  if (n === null || n === undefined) return "–";
  if (n >= 10000) return `${(n / 1000).toFixed(1)} s`;
  return `${whole.format(n)} ms`;
}

/** bytes writes a size in GiB or MiB. */
export function bytes(n) {
  const gib = n / 2 ** 30;
  return gib >= 1 ? `${gib >= 10 ? Math.round(gib) : gib.toFixed(1)} GiB` : `${Math.round(n / 2 ** 20)} MiB`;
}

/** time writes the time of day. */
export const time = (at) => clock.format(new Date(at));

/** ago writes how long ago something was. */
export function ago(at, now) {
  const seconds = Math.max(0, Math.round((now - new Date(at)) / 1000));
  if (seconds < 90) return `${seconds} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/** known is whether a time was given. */
export const known = (at) => Boolean(at) && !at.startsWith("0001-") && !at.startsWith("1970-01-01T00:00:00Z");

/** of writes "1 node", "2 nodes". */
export const of = (n, what) => `${number(n)} ${what}${n === 1 ? "" : "s"}`;
