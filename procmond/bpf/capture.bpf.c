// Tells user space of every process that begins, runs a program, changes its name or its control
// group, or ends, and of what else has changed since it was asked last. Tracepoints, iterators and
// helpers only: kprobes, fentry and LSM programs are refused by hardened kernels.
//
// What a reader finds in the ring is in the order in which it happened. What finds no room there
// is counted, and every event says how many were lost up to it.
//
// Built by ./build; the object stands beside this file, so that building procmond takes no clang.
#include "kernel.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

// The layout is read by source/ebpf/record.rs.
enum { FORK = 1, EXEC = 2, EXIT = 3, RENAME = 4, MOVE = 5, LOOK = 6, KINDS };
enum {
	ARGV_CUT = 1,
	ARGV_UNREADABLE = 2,
	EXE_CUT = 4,
	CWD_CUT = 8,
	EXE_DELETED = 16,
	OTHER_GROUP = 32,
	HAS_ENDED = 64,
};
enum { LOST_STARTS, LOST_CHANGES, LOST_STOPS, LOST_KINDS };
// Longer than it takes to tell of a beginning.
#define YOUNG_NS 100000000ULL
// In each turn so many nanoseconds long every so many-th process is looked at though it has not run.
#define TURN_NS 1000000000ULL
#define TURNS 8
enum { ARGV_BYTES = 4096, PATH_BYTES = 2048, NAME_BYTES = 256, PARTS_MAX = 64 };

struct event {
	u32 kind;
	u32 flags;
	u64 time_ns; // Since boot, time asleep included, as start_ns.
	u64 start_ns; // With the pid, this is one process and no other.
	u64 capabilities; // In effect.
	u32 lost[LOST_KINDS];
	u32 pid;
	u32 ppid;
	u32 forker; // Who made it: its parent, or that one's child (CLONE_PARENT).
	u32 session;
	u32 uid, euid, gid, egid;
	u32 login_uid;
	u32 pid_ns, mnt_ns, net_ns, user_ns, uts_ns, ipc_ns, cgroup_ns;
	u32 exec_id; // Another one for each program of a process; its children begin with its own.
	char name[16];
	union {
		// Of an end.
		struct {
			u64 cpu_ns;
			u64 peak_pages;
			u32 status; // As wait(2) has it.
		};
		// Of a program.
		struct {
			u32 argv_bytes, exe_bytes, cwd_bytes; // In this order from `data` on.
			u32 exe_device; // As the kernel has it: 20 bits of minor number.
			u64 exe_inode, exe_size, exe_ctime_sec, exe_ctime_nsec;
			// A path's parts, the last one first, each ended by a zero.
			char data[ARGV_BYTES + 2 * PATH_BYTES];
		};
	};
};
#define HEAD_BYTES __builtin_offsetof(struct event, cpu_ns)
#define EXIT_BYTES (__builtin_offsetof(struct event, status) + sizeof(u32))
#define EXEC_HEAD_BYTES __builtin_offsetof(struct event, data)

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 << 20); // Set when loaded.
} events SEC(".maps");

// One place for each kind: a program may interrupt another, but not itself.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KINDS);
	__type(key, u32);
	__type(value, struct event);
} places SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32[LOST_KINDS]);
} lost SEC(".maps");

// What can change without a tracepoint that tells, and what a change of it may have been lost.
union seen {
	struct {
		u64 capabilities;
		u64 group, namespaces; // Where the kernel keeps them.
		u64 exec_id;
		u32 uid, euid, gid, egid;
		u32 login_uid, session;
		char name[16];
	};
	u64 words[9];
};

// As it was when it was last told.
struct last {
	u64 run_ns; // How long the first thread had run before that was looked at.
	union seen seen;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u32);
	__type(value, struct last);
} last_seen SEC(".maps");

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static __always_inline struct event *place_for(u32 kind)
{
	return bpf_map_lookup_elem(&places, &kind);
}

static __always_inline u32 *lost_so_far(void)
{
	u32 zero = 0;
	return bpf_map_lookup_elem(&lost, &zero);
}

static __always_inline void send(struct event *event, u64 bytes, u32 lost_as)
{
	u32 *counts = lost_so_far();
	if (!counts)
		return;
	__builtin_memcpy(event->lost, counts, sizeof(event->lost));
	if (bpf_ringbuf_output(&events, event, bytes, 0))
		__sync_fetch_and_add(&counts[lost_as], 1);
}

// What the verifier knows to be a kernel's structure is read as it stands there, which gives zeroes
// where there is none; a helper for each field would take most of the time. Kernels that know which
// pointers may be gone want those looked at first.
static __always_inline struct event *about(struct task_struct *task, u32 kind)
{
	struct event *event = place_for(kind);
	struct task_struct *leader = task->group_leader;
	// Threads may have others; what counts is what the process list shows.
	const struct cred *cred = leader->cred;
	struct task_struct *parent = leader->real_parent;
	if (!event || !cred || !parent)
		return 0;
	struct nsproxy *namespaces = task->nsproxy;
	struct pid *pid = leader->thread_pid;
	struct upid innermost = {};

	event->kind = kind;
	event->flags = 0;
	event->time_ns = bpf_ktime_get_boot_ns();
	event->start_ns = leader->start_boottime;
	event->pid = task->tgid;
	event->ppid = parent->tgid;
	event->forker = event->ppid;
	event->session = task->signal->pids[PIDTYPE_SID]->numbers[0].nr;
	event->uid = cred->uid.val;
	event->euid = cred->euid.val;
	event->gid = cred->gid.val;
	event->egid = cred->egid.val;
	// As one number since Linux 6.3, as two halves of it before.
	event->capabilities = 0;
	bpf_core_read(&event->capabilities, sizeof(event->capabilities), &cred->cap_effective);
	event->login_uid = -1;
	if (bpf_core_field_exists(task->loginuid))
		event->login_uid = task->loginuid.val;
	u32 level = pid->level;
	// The kernel's own limit is 32.
	if (level < 32)
		bpf_core_read(&innermost, sizeof(innermost), &pid->numbers[level]);
	struct pid_namespace *pid_namespace = innermost.ns;
	event->pid_ns = BPF_CORE_READ(pid_namespace, ns.inum);
	event->mnt_ns = namespaces->mnt_ns->ns.inum;
	event->net_ns = namespaces->net_ns->ns.inum;
	event->user_ns = cred->user_ns->ns.inum;
	event->uts_ns = namespaces->uts_ns->ns.inum;
	event->ipc_ns = namespaces->ipc_ns->ns.inum;
	event->cgroup_ns = namespaces->cgroup_ns->ns.inum;
	event->exec_id = leader->self_exec_id;
	BPF_CORE_READ_INTO(&event->name, leader, comm);
	return event;
}

struct walk {
	struct dentry *entry;
	struct mount *mount;
	u32 from;
	u32 at;
	bool whole;
};

// Takes one step towards the root, through mount points.
static long step(u32 index, void *context)
{
	struct walk *walk = context;
	struct dentry *entry = walk->entry;
	struct mount *mount = walk->mount;
	struct dentry *parent = BPF_CORE_READ(entry, d_parent);

	if (entry == BPF_CORE_READ(mount, mnt.mnt_root)) {
		struct mount *above = BPF_CORE_READ(mount, mnt_parent);
		if (above == mount) {
			walk->whole = 1;
			return 1;
		}
		walk->entry = BPF_CORE_READ(mount, mnt_mountpoint);
		walk->mount = above;
		return 0;
	}
	// The name of a file that is on no mount one could walk to, such as that of a memfd, is all
	// there is of its path.
	struct event *event = place_for(EXEC);
	u32 at = walk->at;
	if (!event || at - walk->from > PATH_BYTES - NAME_BYTES ||
	    at > sizeof(event->data) - NAME_BYTES)
		return 1;
	long bytes = bpf_probe_read_kernel_str(event->data + at, NAME_BYTES,
					       BPF_CORE_READ(entry, d_name.name));
	if (bytes <= 0)
		return 1;
	walk->at = at + bytes;
	if (entry == parent) {
		walk->whole = 1;
		return 1;
	}
	walk->entry = parent;
	return 0;
}

// Writes a path's parts behind `from` and says where they end.
static __always_inline u32 write_path(struct event *event, const struct path *path, u32 from, u32 cut)
{
	struct vfsmount *mount = BPF_CORE_READ(path, mnt);
	struct walk walk = {
		.entry = BPF_CORE_READ(path, dentry),
		.mount = (void *)mount - bpf_core_field_offset(struct mount, mnt),
		.from = from,
		.at = from,
	};
	bpf_loop(PARTS_MAX, step, &walk, 0);
	if (!walk.whole)
		event->flags |= cut;
	return walk.at;
}

// Says which file it is and in which state.
static __always_inline void identify(struct event *event, struct inode *inode)
{
	event->exe_device = BPF_CORE_READ(inode, i_sb, s_dev);
	event->exe_inode = BPF_CORE_READ(inode, i_ino);
	event->exe_size = BPF_CORE_READ(inode, i_size);
	if (bpf_core_field_exists(inode->i_ctime_sec)) {
		event->exe_ctime_sec = BPF_CORE_READ(inode, i_ctime_sec);
		// Since Linux 6.13 the highest bit says whether anybody has asked for it.
		event->exe_ctime_nsec = BPF_CORE_READ(inode, i_ctime_nsec) & ~(1u << 31);
		return;
	}
	struct inode___timespec *newer = (void *)inode;
	struct inode___plain *older = (void *)inode;
	if (bpf_core_field_exists(newer->__i_ctime)) {
		event->exe_ctime_sec = BPF_CORE_READ(newer, __i_ctime.tv_sec);
		event->exe_ctime_nsec = BPF_CORE_READ(newer, __i_ctime.tv_nsec);
	} else {
		event->exe_ctime_sec = BPF_CORE_READ(older, i_ctime.tv_sec);
		event->exe_ctime_nsec = BPF_CORE_READ(older, i_ctime.tv_nsec);
	}
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	// Threads are not processes.
	if (child->pid != child->tgid)
		return 0;
	struct event *event = about(child, FORK);
	if (!event)
		return 0;
	event->forker = parent->tgid;
	// A control group is inherited, unless another is asked for (CLONE_INTO_CGROUP).
	if (child->cgroups != parent->cgroups)
		event->flags |= OTHER_GROUP;
	send(event, HEAD_BYTES, LOST_STARTS);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid, struct linux_binprm *program)
{
	struct event *event = about(task, EXEC);
	if (!event)
		return 0;
	struct mm_struct *memory = task->mm;
	u64 start = memory->arg_start;
	u64 bytes = memory->arg_end - start;
	if (bytes > ARGV_BYTES) {
		bytes = ARGV_BYTES;
		event->flags |= ARGV_CUT;
	}
	if (bpf_probe_read_user(event->data, bytes, (void *)start)) {
		bytes = 0;
		event->flags |= ARGV_UNREADABLE;
	}
	event->argv_bytes = bytes;

	u32 end = bytes;
	struct file *file = BPF_CORE_READ(memory, exe_file);
	struct inode *inode = BPF_CORE_READ(file, f_path.dentry, d_inode);
	if (BPF_CORE_READ(inode, i_nlink) == 0)
		event->flags |= EXE_DELETED;
	identify(event, inode);
	u32 exe_end = write_path(event, &file->f_path, end, EXE_CUT);
	event->exe_bytes = exe_end - end;
	u32 cwd_end = write_path(event, &BPF_CORE_READ(task, fs)->pwd, exe_end, CWD_CUT);
	event->cwd_bytes = cwd_end - exe_end;
	u64 size = EXEC_HEAD_BYTES + cwd_end;
	if (size > sizeof(*event))
		size = sizeof(*event);
	send(event, size, LOST_CHANGES);
	return 0;
}

SEC("tp_btf/task_rename")
int BPF_PROG(on_rename, struct task_struct *task, const char *name)
{
	// A process has the name of its first thread.
	if (task->pid != task->tgid)
		return 0;
	// Whoever runs a program is given its name on the way, and told of as a whole.
	if (bpf_core_field_exists(task->in_execve) && BPF_CORE_READ_BITFIELD_PROBED(task, in_execve))
		return 0;
	struct event *event = about(task, RENAME);
	if (!event)
		return 0;
	bpf_probe_read_kernel_str(event->name, sizeof(event->name), name);
	send(event, HEAD_BYTES, LOST_CHANGES);
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(on_move, struct cgroup *to, const char *path, struct task_struct *task)
{
	if (task->pid != task->tgid)
		return 0;
	struct event *event = about(task, MOVE);
	if (!event)
		return 0;
	send(event, HEAD_BYTES, LOST_CHANGES);
	return 0;
}

static __always_inline u32 status_of(struct task_struct *task, struct signal_struct *signal)
{
	u32 status = signal->group_exit_code;
	return status ? status : task->exit_code;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;
	// The last thread ends the process. Two that end at once may both think so.
	if (signal->live.counter != 0)
		return 0;
	struct event *event = about(task, EXIT);
	if (!event)
		return 0;
	event->status = status_of(task, signal);
	// Of the threads that ended before, and of this last one.
	event->cpu_ns = signal->sum_sched_runtime + task->se.sum_exec_runtime;
	event->peak_pages = signal->maxrss;
	send(event, EXIT_BYTES, LOST_STOPS);
	return 0;
}

// The first thread of a process, or none.
static __always_inline struct task_struct *leader_at(struct bpf_iter__task *context)
{
	struct task_struct *task = context->task;
	return task && task->pid == task->tgid ? task : 0;
}

// Everything that is there.
SEC("iter/task")
int on_look(struct bpf_iter__task *context)
{
	struct task_struct *task = leader_at(context);
	if (!task)
		return 0;
	struct event *event = about(task, LOOK);
	if (!event)
		return 0;
	struct signal_struct *signal = task->signal;
	event->cpu_ns = 0;
	event->peak_pages = 0;
	event->status = 0;
	if (task->exit_state && signal->live.counter == 0) {
		event->flags |= HAS_ENDED;
		event->status = status_of(task, signal);
	}
	bpf_seq_write(context->meta->seq, event, EXIT_BYTES);
	return 0;
}

// What is not as it was last told: goes into the ring, in its order with everything else. What
// finds no room is not lost, but told when it is looked at again.
SEC("iter/task")
int on_sweep(struct bpf_iter__task *context)
{
	struct task_struct *task = leader_at(context);
	if (!task)
		return 0;
	u64 now_ns = bpf_ktime_get_boot_ns();
	// It can be found a moment before its beginning is told.
	if (now_ns - task->start_boottime < YOUNG_NS)
		return 0;
	// Whoever has not run has changed nothing about itself; to look whether it has is what costs,
	// most of the machine's processes being nowhere in the caches. What another of its threads has
	// changed is seen when it is its turn.
	u64 run_ns = task->se.sum_exec_runtime;
	struct last *last = bpf_task_storage_get(&last_seen, task, 0, 0);
	if (last && last->run_ns == run_ns &&
	    (now_ns / TURN_NS + task->tgid) % TURNS)
		return 0;
	struct signal_struct *signal = task->signal;
	const struct cred *cred = task->cred;
	if (signal->live.counter == 0 || !cred)
		return 0;
	union seen now = {};
	bpf_core_read(&now.capabilities, sizeof(now.capabilities), &cred->cap_effective);
	// Read so, they are numbers.
	now.group = (u64)BPF_CORE_READ(task, cgroups);
	now.namespaces = (u64)BPF_CORE_READ(task, nsproxy);
	now.uid = cred->uid.val;
	now.euid = cred->euid.val;
	now.gid = cred->gid.val;
	now.egid = cred->egid.val;
	if (bpf_core_field_exists(task->loginuid))
		now.login_uid = task->loginuid.val;
	now.session = signal->pids[PIDTYPE_SID]->numbers[0].nr;
	now.exec_id = task->self_exec_id;
	BPF_CORE_READ_INTO(&now.name, task, comm);

	if (!last)
		last = bpf_task_storage_get(&last_seen, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!last)
		return 0;
	u64 differs = 0;
#pragma unroll
	for (int i = 0; i < 9; i++)
		differs |= now.words[i] ^ last->seen.words[i];
	if (!differs) {
		last->run_ns = run_ns;
		return 0;
	}
	struct event *event = about(task, LOOK);
	u32 *counts = lost_so_far();
	if (!event || !counts)
		return 0;
	// None was told before at all, or another.
	if (last->seen.group && last->seen.group != now.group)
		event->flags |= OTHER_GROUP;
	__builtin_memcpy(event->lost, counts, sizeof(event->lost));
	if (!bpf_ringbuf_output(&events, event, HEAD_BYTES, 0)) {
		last->run_ns = run_ns;
		last->seen = now;
	}
	return 0;
}
