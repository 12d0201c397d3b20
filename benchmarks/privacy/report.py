"""The tables and the headline of the benchmark."""

import math
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.privacy.attacks import ALL, ATTACKS, ONE, Finding
from benchmarks.privacy.choices import Choice
from benchmarks.privacy.costs import Ratio
from benchmarks.privacy.membership import Membership
from benchmarks.privacy.modes import MASKED, MODES, PLAIN
from benchmarks.shared.results import markdown_table

QUOTED_NETWORK, QUOTED_BATCH = "demo CNN", 8


def leak_tables(findings: Sequence[Finding]) -> str:
    """Return a table for each network: how near each attack comes to the images, by mode and batch."""
    parts = []
    for network in dict.fromkeys(f.network for f in findings):
        rows = []
        of_network = [f for f in findings if f.network == network]
        for mode in MODES:
            for target in (ONE, ALL):
                for batch in sorted({f.batch for f in of_network}):
                    found = [f for f in of_network if (f.mode, f.target, f.batch) == (mode.name, target, batch)]
                    if found:
                        rows.append(_row(mode.name, target, batch, found))
        header = ["mode", "seen", "batch", "images", *ATTACKS, "best SSIM", "above 20 dB", "mean image"]
        parts.append(f"## {network}: mean PSNR of the images in dB\n\n{markdown_table(header, rows)}\n")
    return "\n".join(parts)


def membership_table(found: Mapping[str, Membership]) -> str:
    """Return a table of membership inference on the final model, by mode."""
    rows = [[mode, f"{m.loss_auc:.3f}", f"{m.ratio_auc:.3f}", f"{100 * m.accuracy:.1f} %"] for mode, m in found.items()]
    return markdown_table(["mode", "AUC by loss", "AUC by likelihood ratio", "accuracy"], rows)


def cost_table(ratios: Mapping[str, Ratio]) -> str:
    """Return a table of what masks cost, over int8."""
    rows = [[name, r.bytes, r.sent, r.received, r.step, r.processor] for name, r in ratios.items()]
    return markdown_table(["network", "bytes", "sent", "received", "step time", "processor time"], rows)


def choice_table(choices: Mapping[str, Choice]) -> str:
    """Return a table of what each mode costs; bytes are told by those of int8."""
    unit = choices["int8"].bytes if "int8" in choices else math.nan
    rows = [[mode, f"{c.bytes / unit:.2f}", f"{100 * c.accuracy:.1f} %"] for mode, c in choices.items()]
    return markdown_table(["mode", "bytes", "accuracy"], rows)


def best(findings: Iterable[Finding], mode: str, target: str, network: str, batch: int) -> Finding | None:
    """Return the finding of the attack that came nearest."""
    wanted = (mode, target, network, batch)
    found = [f for f in findings if (f.mode, f.target, f.network, f.batch) == wanted]
    return max(found, key=lambda f: f.psnr_db, default=None)


def advantage(findings: Iterable[Finding]) -> float | None:
    """Return by how much the best attack on what a masked device sends beats the mean image, in dB; 0 if none does."""
    masked = {mode.name for mode in MODES if mode.is_masked}
    gains = [f.psnr_db - f.mean_image_db for f in findings if f.mode in masked and f.target == ONE]
    return round(max(0.0, *gains), 2) if gains else None


def headline(
    findings: Sequence[Finding], ratios: Mapping[str, Ratio], costs: Mapping[str, Mapping[str, float]]
) -> dict[str, float | None]:
    """Return the figures that the project quotes; the PSNRs are of the demo's network with batches of eight.

    Args:
        findings: of the attacks.
        ratios: of masked over int8, by network.
        costs: has `Survival` as "dropouts" and `KeySeconds` as "keys_of_100_devices".

    """
    survival, keys = costs.get("dropouts"), costs.get("keys_of_100_devices")
    quoted = QUOTED_NETWORK, QUOTED_BATCH
    plain = best(findings, PLAIN.name, ONE, *quoted)
    masked = best(findings, MASKED.name, ONE, *quoted)
    summed = best(findings, MASKED.name, ALL, *quoted)
    small, large = ratios.get("digits"), ratios.get("1m")
    return {
        "masked_bytes_vs_int8": None if small is None else small.bytes,
        "masked_step_time_ratio_digits": None if small is None else small.step,
        "masked_step_time_ratio_1m": None if large is None else large.step,
        "attack_psnr_plain_db": None if plain is None else plain.psnr_db,
        "attack_psnr_masked_db": None if masked is None else masked.psnr_db,
        "attack_psnr_mean_image_db": None if masked is None else masked.mean_image_db,
        "attack_gain_over_mean_image_masked_worst_db": advantage(findings),
        "attack_psnr_sum_of_eight_db": None if summed is None else summed.psnr_db,
        "dropouts_survived_fraction": survival["survived"] / survival["tried"] if survival else None,
        "key_agreement_100_devices_s": round(sum(keys.values()), 3) if keys else None,
    }


def _row(mode: str, target: str, batch: int, found: Sequence[Finding]) -> list[object]:
    by_attack = {f.attack: f for f in found}
    top = max(found, key=lambda f: f.psnr_db)
    cells = [f"{by_attack[name].psnr_db:.1f}" if name in by_attack else None for name in ATTACKS]
    rebuilt = f"{100 * max(f.rebuilt for f in found):.0f} %"
    return [mode, target, batch, top.images, *cells, f"{top.ssim:.2f}", rebuilt, f"{top.mean_image_db:.1f}"]
