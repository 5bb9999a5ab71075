package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// spawner starts child processes from one thread that lives as long as the
// spawner: a child that is to die with its parent (on Linux) is bound to the
// thread that started it.
type spawner struct {
	jobs chan func()
	done chan struct{}
	once sync.Once
}

func newSpawner() *spawner {
	s := &spawner{jobs: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for job := range s.jobs {
			job()
		}
	}()
	return s
}

// close ends the thread. No start may be under way.
func (s *spawner) close() {
	s.once.Do(func() { close(s.jobs) })
	<-s.done
}

// proc is a child process, waited for by a goroutine of its own.
type proc struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of the wait; valid once done is closed
	log  string
}

// start runs bin with its output appended to the file log.
func (s *spawner) start(bin string, args []string, log string) (*proc, error) {
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the child has its own descriptor
	cmd := exec.Command(bin, args...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Env = childEnv(os.Environ())
	cmd.SysProcAttr = childAttr()
	started := make(chan error, 1)
	s.jobs <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", bin, err)
	}
	p := &proc{cmd: cmd, done: make(chan struct{}), log: log}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// childEnv leaves out the settings that are meant for this command.
func childEnv(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, "BATON_") {
			out = append(out, e)
		}
	}
	return out
}

func (p *proc) pid() int { return p.cmd.Process.Pid }

// signal sends sig; a process that has ended already is no fault.
func (p *proc) signal(sig os.Signal) error {
	err := p.cmd.Process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// ended reports whether the process has ended.
func (p *proc) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// kill ends the process at once, stopped or not, and waits for it.
func (p *proc) kill() {
	_ = p.signal(syscall.SIGKILL)
	<-p.done
}

// terminate asks the process to end and waits up to limit, then kills it. It
// returns nil only if the process ended by itself with status 0.
func (p *proc) terminate(limit time.Duration) error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-p.done:
		return p.err
	case <-t.C:
		p.kill()
		return fmt.Errorf("it did not end within %s of SIGTERM", limit)
	}
}

// tail returns the last lines of the process's output, for an error message.
func (p *proc) tail(lines int) string {
	const tailBytes = 4 << 10
	f, err := os.Open(p.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > tailBytes {
		_, _ = f.Seek(-tailBytes, 2)
	}
	buf := make([]byte, tailBytes)
	n, _ := f.Read(buf)
	all := strings.Split(strings.TrimSpace(string(buf[:n])), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, " | ")
}
