// Package proc builds the node program and runs it as child processes that end
// with this one, whatever happens to it.
package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// BuildProgram builds a package's program, in the module at dir. overlay, if set,
// is the file of a `go build -overlay` that replaces sources for a mutant.
func BuildProgram(ctx context.Context, dir, pkg, out, overlay string) error {
	args := []string{"build", "-o", out}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, text)
	}
	return nil
}

// Root finds the repository from the working directory: the nearest directory
// upwards that holds cmd/node and go.mod.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		_, mod := os.Stat(filepath.Join(dir, "go.mod"))
		_, cmd := os.Stat(filepath.Join(dir, "cmd", "node"))
		if mod == nil && cmd == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("the repository was not found above the working directory; give --baton")
		}
		dir = up
	}
}

// Spawner starts processes. On Linux a child dies with the thread that started
// it, so all are started by one thread that lives until Close.
type Spawner struct {
	jobs chan func()
	done chan struct{}
	once sync.Once
}

// The main thread ends with the process and not before, so a spawner must never
// run on it: the main goroutine, which runs this, keeps it.
func init() { runtime.LockOSThread() }

// NewSpawner starts the thread.
func NewSpawner() *Spawner {
	s := &Spawner{jobs: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		runtime.LockOSThread() // never unlocked: the thread must end with its children gone
		for job := range s.jobs {
			job()
		}
	}()
	return s
}

// Close ends the thread, and so whatever still runs. No Start may be under way.
func (s *Spawner) Close() {
	s.once.Do(func() { close(s.jobs) })
	<-s.done
}

// Process is a child. Each of its methods acts on that process alone, by its
// handle, never by name.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid once done is closed
}

// Start runs bin with its output appended to the file log. enter, where set, puts
// the thread that starts it elsewhere before, and its result back.
func (s *Spawner) Start(bin string, args []string, log string, enter func() (back func() error, err error)) (*Process, error) {
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the child has its own descriptor
	cmd := exec.Command(bin, args...)
	cmd.Stdout, cmd.Stderr = f, f
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "BATON_") { // settings meant for somebody else
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.SysProcAttr = childAttr()
	started := make(chan error, 1)
	s.jobs <- func() { started <- startIn(cmd, enter) }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", bin, err)
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	return p, nil
}

func startIn(cmd *exec.Cmd, enter func() (back func() error, err error)) error {
	if enter == nil {
		return cmd.Start()
	}
	back, err := enter()
	if err != nil {
		return err
	}
	err = cmd.Start()
	return errors.Join(err, back())
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended reports whether it has.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends sig; to a process that has ended it does nothing.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Kill ends the process at once, stopped or not, and waits for it.
func (p *Process) Kill() {
	_ = p.Signal(syscall.SIGKILL)
	<-p.done
}

// Stop asks the process to end in order and waits; it is still running if ctx
// ends first. An exit status other than 0 is an error.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("it runs on after SIGTERM: %w", ctx.Err())
	}
}

// Tail returns the last bytes of a log, for an error message.
func Tail(path string, bytes int64) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if int64(len(b)) > bytes {
		b = b[int64(len(b))-bytes:]
	}
	return string(b)
}

// Poll calls ready every step until it returns nil or ctx ends, whose last
// fault it then returns.
func Poll(ctx context.Context, step time.Duration, ready func() error) error {
	for {
		err := ready()
		if err == nil {
			return nil
		}
		t := time.NewTimer(step)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}
