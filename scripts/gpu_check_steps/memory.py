"""How much of the first GPU's memory is in use while a process runs, as nvidia-smi sees it."""
import shutil
import subprocess

SMI = ["nvidia-smi", "-i", "0", "--format=csv,noheader,nounits"]


class MemoryWatch:
    """Samples ten times a second between `with` and its end; `bytes` is the rise, None without nvidia-smi."""

    def __enter__(self):
        self.bytes = self.process = None
        if shutil.which(SMI[0]):
            command = [*SMI, "--query-gpu=memory.used"]
            self.before = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split()
            self.process = subprocess.Popen([*command, "-lms", "100"], stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.terminate()
            used = [int(line) for line in [*self.before, *self.process.communicate()[0].split()] if line.isdigit()]
            self.bytes = (max(used) - used[0]) << 20 if used else None
