//! Processes that are run, and what is known of them for sure.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The word that makes this program the process that runs the others.
pub(crate) const ROLE: &str = "spawner";
const WORKERS: usize = 4;

#[derive(Clone)]
pub(crate) enum Program {
    True,
    At(PathBuf),
}

impl Program {
    fn path(&self) -> &Path {
        match self {
            Self::True => Path::new("/bin/true"),
            Self::At(path) => path,
        }
    }
}

pub(crate) struct Load {
    pub(crate) program: Program,
    pub(crate) count: usize,
    /// As fast as it goes, if not said.
    pub(crate) per_second: Option<u32>,
}

/// What was run.
#[derive(Clone)]
pub(crate) struct Truth {
    pub(crate) pids: Vec<u32>,
    pub(crate) seconds: f64,
    /// Of the process that ran them and of all of them.
    pub(crate) kernel_time: Duration,
}

impl Load {
    /// Runs it. Each process has as arguments the mark with a number, the time since boot in
    /// nanoseconds just before it was made, and `end`.
    pub(crate) fn run(&self, mark: &str) -> Result<Truth, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut spawner = Command::new(program)
            .arg(ROLE)
            .arg(self.program.path())
            .arg(self.count.to_string())
            .arg(self.per_second.unwrap_or(0).to_string())
            .arg(mark)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("the load cannot be started: {error}"))?;
        let output = spawner.stdout.take().ok_or("its output is not piped")?;
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let figures = lines.next().unwrap_or_default();
        let mut figures = figures.split(' ').map_while(|word| word.parse::<u64>().ok());
        let (wall_ns, kernel_ns) = figures.next().zip(figures.next()).ok_or("the load failed")?;
        let pids: Vec<u32> = lines.map_while(|line| line.parse().ok()).collect();
        spawner.wait().map_err(|error| error.to_string())?;
        if pids.len() != self.count {
            return Err("the load was not run to its end".to_owned());
        }
        let seconds = Duration::from_nanos(wall_ns).as_secs_f64();
        Ok(Truth { pids, seconds, kernel_time: Duration::from_nanos(kernel_ns) })
    }
}

/// The other side of [`Load::run`].
pub(crate) fn play(mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let mut next = || arguments.next().ok_or("an argument is missing");
    let program = next()?;
    let count: usize = next()?.parse().map_err(|_| "not a count")?;
    let per_second: u32 = next()?.parse().map_err(|_| "not a rate")?;
    let mark = next()?;
    let began = Instant::now();
    let pids: Vec<Result<Vec<u32>, String>> = thread::scope(|scope| {
        let worker = |worker: usize| {
            let (program, mark) = (&program, &mark);
            scope.spawn(move || {
                let mut pids = Vec::with_capacity(count / WORKERS + 1);
                for n in (worker..count).step_by(WORKERS) {
                    if per_second > 0 {
                        let due = Duration::from_secs_f64(n as f64 / f64::from(per_second));
                        thread::sleep(due.saturating_sub(began.elapsed()));
                    }
                    let mut child = Command::new(program)
                        .args([format!("{mark}-{n}"), since_boot_ns().to_string()])
                        .arg("end")
                        .env_clear()
                        .spawn()
                        .map_err(|error| format!("{program}: {error}"))?;
                    pids.push(child.id());
                    child.wait().map_err(|error| error.to_string())?;
                }
                Ok(pids)
            })
        };
        let workers: Vec<_> = (0..WORKERS).map(worker).collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined.map(|pids| pids.unwrap_or_else(|_| Err("a worker failed".to_owned()))).collect()
    });
    let wall = began.elapsed();
    let mut text = format!("{} {}\n", wall.as_nanos(), own_kernel_ns()?);
    for pid in pids.into_iter().collect::<Result<Vec<_>, _>>()?.concat() {
        text += &format!("{pid}\n");
    }
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| error.to_string())
}

/// The kernel's time for this process and its children that have ended: it knows no better than
/// 10 ms here.
fn own_kernel_ns() -> Result<u64, String> {
    let stat = std::fs::read_to_string("/proc/self/stat").map_err(|error| error.to_string())?;
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    let mut fields = behind_name.split_whitespace().skip(12);
    let own: u64 = fields.next().and_then(|field| field.parse().ok()).ok_or("no stime")?;
    let children: u64 = fields.nth(1).and_then(|field| field.parse().ok()).ok_or("no cstime")?;
    Ok((own + children) * 10_000_000)
}

pub(crate) fn since_boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Writes a program that ends at once, as an ELF file of one header, one segment and the code.
pub(crate) fn write_tiny(directory: &Path) -> Result<PathBuf, String> {
    const CODE: &[u8] = if cfg!(target_arch = "x86_64") {
        // mov eax, 60; xor edi, edi; syscall
        &[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]
    } else {
        // mov x8, #93; mov x0, #0; svc #0
        &[0xa8, 0x0b, 0x80, 0xd2, 0, 0, 0x80, 0xd2, 1, 0, 0, 0xd4]
    };
    const HEADERS: u64 = 64 + 56;
    const AT: u64 = 0x40_0000;
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    let size = HEADERS + CODE.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2_u16.to_le_bytes(), machine.to_le_bytes()].concat());
    elf.extend(1_u32.to_le_bytes());
    elf.extend([AT + HEADERS, 64, 0].map(u64::to_le_bytes).concat());
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
    // Loaded, readable and executable.
    elf.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    elf.extend([0, AT, AT, size, size, 4096].map(u64::to_le_bytes).concat());
    elf.extend(CODE);
    let path = directory.join("tiny");
    std::fs::write(&path, elf).map_err(|error| error.to_string())?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))
        .map_err(|error| error.to_string())?;
    Ok(path)
}
