// Numbers as they are written: the rules of robench.formatting.

function fixed(value, digits, plus = "") {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return String(value);
  // What floating point added beyond twelve digits is taken off; halves go away from zero.
  const [mantissa, power] = Math.abs(value).toExponential(11).split("e");
  const whole = BigInt(mantissa.replace(".", "")), shift = Number(power) - 11 + digits;
  const unit = 10n ** BigInt(Math.abs(shift));
  const scaled = shift >= 0 ? whole * unit : (2n * whole + unit) / (2n * unit);
  const text = scaled.toString().padStart(digits + 1, "0");
  const shown = digits ? `${text.slice(0, -digits)}.${text.slice(-digits)}` : text;
  return (value < 0 || Object.is(value, -0) ? "-" : plus) + shown;
}

function pValue(p) {
  return p < 0.001 ? "< 0.001" : fixed(p, 3);
}

function signedInterval({ estimate, low, high }, digits) {
  if (Number.isNaN(estimate)) return "–";
  return `${fixed(estimate, digits, "+")} (${fixed(low, digits, "+")} … ${fixed(high, digits, "+")})`;
}

function short(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(3))) : "–";
}
