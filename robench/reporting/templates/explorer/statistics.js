// Two models on the same samples: the tests and intervals of robench.statistics.

const Z95 = 1.959963984540054, Z80 = 0.8416212335729143;

function pairedCounts(first, second) {
  const counts = { both: 0, onlyFirst: 0, onlySecond: 0, neither: 0 };
  first.forEach((right, k) => {
    counts[right ? (second[k] ? "both" : "onlyFirst") : second[k] ? "onlySecond" : "neither"]++;
  });
  return counts;
}

// Two-sided p-value of the exact McNemar test.
function mcnemar({ onlyFirst, onlySecond }) {
  const n = onlyFirst + onlySecond, least = Math.min(onlyFirst, onlySecond);
  if (2 * least === n) return 1;
  let logTerm = -n * Math.LN2, tail = Math.exp(logTerm);
  for (let k = 0; k < least; k++) {
    logTerm += Math.log((n - k) / (k + 1));
    tail += Math.exp(logTerm);
  }
  return Math.min(1, 2 * tail);
}

// Tango's 95 % score interval (1998) of the paired difference, first minus second, in [-1, 1].
function tangoInterval(counts) {
  const { both, onlyFirst: plus, onlySecond: minus, neither } = counts;
  const n = both + plus + minus + neither;
  if (!n) return { estimate: NaN, low: NaN, high: NaN };
  const estimate = (plus - minus) / n;
  const variance = delta => {
    // Of one pair's difference, with the nuisance parameter at its restricted maximum likelihood.
    const b = -plus - minus + (2 * n - plus + minus) * delta, c = -minus * delta * (1 - delta);
    const share = (Math.sqrt(Math.max(0, b * b - 8 * n * c)) - b) / (4 * n);
    return Math.max(0, 2 * share + delta * (1 - delta));
  };
  const excess = delta => (n * (estimate - delta)) ** 2 - Z95 ** 2 * n * variance(delta);
  const limit = end => {
    const start = estimate + 1e-9 * end;
    return Math.abs(start) < 1 && excess(end) > 0 ? root(excess, start, end) : end;
  };
  return { estimate, low: limit(-1), high: limit(1) };
}

// The smallest true difference that a McNemar test at 5 % shows with 80 % power; null: none.
function smallestDifference(n, discordant) {
  const excess = delta =>
    delta * Math.sqrt(n) - Z95 * Math.sqrt(discordant) - Z80 * Math.sqrt(discordant - delta ** 2);
  return discordant === 0 || excess(discordant) < 0 ? null : root(excess, 0, discordant);
}

// Wilson's 95 % interval of hits / n, in percent.
function wilson(hits, n) {
  if (!n) return { estimate: NaN, low: NaN, high: NaN };
  const p = hits / n, width = 2 * (n + Z95 ** 2);
  const centre = (2 * n * p + Z95 ** 2) / width;
  const half = (Z95 / width) * Math.sqrt(4 * n * p * (1 - p) + Z95 ** 2);
  const low = hits === 0 ? 0 : Math.max(0, centre - half);
  const high = hits === n ? 1 : Math.min(1, centre + half);
  return { estimate: 100 * p, low: 100 * low, high: 100 * high };
}

// Where f changes its sign between two places, by halving.
function root(f, from, to) {
  const negative = f(from) < 0;
  for (let step = 0; step < 100; step++) {
    const middle = (from + to) / 2;
    if (f(middle) < 0 === negative) from = middle;
    else to = middle;
  }
  return (from + to) / 2;
}
