package proc

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

func start(t *testing.T, script string) (*Process, string) {
	t.Helper()
	s := NewSpawner()
	t.Cleanup(s.Close)
	log := filepath.Join(t.TempDir(), "log")
	p, err := s.Start("/bin/sh", []string{"-c", script}, log, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p, log
}

func TestKillWhileStopped(t *testing.T) {
	p, _ := start(t, "sleep 1000")
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if p.Ended() {
		t.Fatal("a stopped process has not ended")
	}
	p.Kill()
	if !p.Ended() {
		t.Fatal("it runs on")
	}
	if err := p.Signal(syscall.SIGCONT); err != nil {
		t.Fatalf("a signal after the end: %v", err)
	}
}

func TestStop(t *testing.T) {
	p, log := start(t, "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	up := func() error {
		if !strings.Contains(Tail(log, 100), "up") {
			return errors.New("not up")
		}
		return nil
	}
	if err := Poll(ctx, time.Millisecond, up); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if got := Tail(log, 4); got != "bye\n" {
		t.Fatalf("log ends with %q", got)
	}
	p, _ = start(t, "exit 3")
	if p.Stop(ctx) == nil {
		t.Fatal("status 3 is no error")
	}
}

func TestSpawnerTakesChildrenAlong(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux binds a child to its parent")
	}
	s := NewSpawner()
	p, err := s.Start("/bin/sh", []string{"-c", "sleep 1000"}, filepath.Join(t.TempDir(), "log"), nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	select {
	case <-p.Done():
	case <-time.After(30 * time.Second):
		p.Kill()
		t.Fatal("the child outlives its thread")
	}
}

func TestRoot(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Skip("not inside the repository")
	}
	if _, err := os.Stat(filepath.Join(root, "cmd", "node")); err != nil {
		t.Fatal(err)
	}
}
