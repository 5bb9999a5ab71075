package main

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/version"
)

// machine is where the figures come from.
type machine struct {
	CPU        string `json:"cpu"`
	Processors int    `json:"processors"`
	OS         string `json:"os"`
	Kernel     string `json:"kernel"`
	Disk       string `json:"disk"` // file system under the temporary directory
	Go         string `json:"go"`
	Etcd       string `json:"etcd"`
}

// thisMachine tells what can be learnt without help; the rest is "unknown".
func thisMachine() machine {
	m := machine{
		CPU: "unknown processor", Processors: runtime.NumCPU(), OS: runtime.GOOS, Kernel: "unknown kernel",
		Disk: "an unknown file system", Go: runtime.Version(), Etcd: version.Version,
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/mounts"); err == nil {
		m.Disk = fileSystem(string(b), os.TempDir())
	}
	return m
}

// fileSystem finds the type of the deepest mount that holds dir.
func fileSystem(mounts, dir string) string {
	best, kind := "", "an unknown file system"
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		at := strings.TrimSuffix(f[1], "/")
		if len(at) >= len(best) && (dir == at || strings.HasPrefix(dir, at+"/")) {
			best, kind = at, f[2]
		}
	}
	return kind
}

// selfCPU is the processor time that this process has used.
func selfCPU() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// clockTick is the unit of processor times in /proc, on every Linux that Go
// runs on.
const clockTick = 10 * time.Millisecond

// cpuOf is the processor time that processes have used so far; 0 where the
// system does not tell.
func cpuOf(pids []int) time.Duration {
	var sum time.Duration
	for _, pid := range pids {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			continue
		}
		sum += statCPU(b)
	}
	return sum
}

// statCPU reads user and system time off a line of /proc/PID/stat. The
// program's name stands in brackets and may hold anything.
func statCPU(stat []byte) time.Duration {
	const user, system = 11, 12 // fields after the name
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) <= system {
		return 0
	}
	var ticks int64
	for _, i := range []int{user, system} {
		n, err := strconv.ParseInt(string(f[i]), 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick
}
