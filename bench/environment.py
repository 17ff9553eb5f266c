"""Makes the environment that the peers run in, on top of the one that runs this.

    .venv/bin/python -m bench.environment .venv-bench

What is not installed there is taken from here: torch, diffusers and FastAPI are the same for all,
and nothing that a peer needs gets into ours.
"""

import argparse
import subprocess
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    find = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    found = subprocess.run(find, capture_output=True, text=True, check=True)  # noqa: S603
    ours = sysconfig.get_path("purelib")
    # addsitedir, not the path alone: our own installation is a .pth file there.
    line = f"import site; site.addsitedir({ours!r})\n"
    (Path(found.stdout.strip()) / "product.pth").write_text(line)
    # --no-deps: the list is complete, and a resolver would look for other versions of ours.
    install = ["-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
    requirements = str(ROOT / "bench" / "requirements.txt")
    subprocess.run([str(python), *install, "-r", requirements], check=True)  # noqa: S603


if __name__ == "__main__":
    main()
