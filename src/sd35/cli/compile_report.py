"""The report that `sd35 compile` prints in the terminal."""

from pathlib import Path
from typing import Any

from sd35.planning.report import size_text

_SHOWN_LAYERS = 10


def report_text(report: dict[str, Any]) -> str:
    """Format the report of a checkpoint's graphs and engines as lines. `--json` prints the same report."""
    lines = [f"{report['checkpoint']} in {report['precision']}: {report['directory']}"]
    lines.append(f"  {size_text(sum(report['bytes'].values()))} in {len(report['bytes'])} files")
    for gpu, engines in report.get("engines", {}).items():
        lines.append(f"  engines for {gpu}, {size_text(sum(engines.values()))}: {Path(next(iter(engines))).parent}")
    if "quality" in report:
        quality, sizes = report["quality"], report["sizes"]
        lines.append(
            f"  PSNR of {len(quality['psnr_db'])} images against those without FP8: mean {quality['mean_db']:.1f} dB"
            f" (required: {quality['bar_db']:.0f} dB), lowest {min(quality['psnr_db']):.1f} dB"
        )
        lines.append(
            f"  {sizes['products_fp8_share']:.1%} of the weights of attention and feed-forward layers are in FP8;"
            f" the transformer has {sizes['total_bytes'] / sizes['total_bf16_bytes']:.2f} times its size in BF16"
        )
        if report["exempt_blocks"]:
            lines.append(f"  not in FP8, for quality: blocks {', '.join(map(str, report['exempt_blocks']))}")
        if report["sensitivity"]:
            lines.append("  most sensitive layers, by the error of the velocity with only this layer in FP8:")
            most_sensitive = report["sensitivity"][:_SHOWN_LAYERS]
            lines += [f"    {layer['error']:.4f}  {layer['layer']}" for layer in most_sensitive]
    if report["took_s"]:
        lines.append("  took: " + ", ".join(f"{name} {took_s:.1f} s" for name, took_s in report["took_s"].items()))
    return "\n".join(lines)
