package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/baton-cluster/baton/test/jepsen-lite/control"
	"github.com/baton-cluster/baton/test/jepsen-lite/mesh"
	"github.com/baton-cluster/baton/test/jepsen-lite/nemesis"
	"github.com/baton-cluster/baton/test/jepsen-lite/proc"
)

// The nemesis's hand on a node's disk and clock.

// SetFaults is told to the node's control socket.
func (c *cluster) SetFaults(ctx context.Context, i int, f control.Faults) error {
	if f.Full || f.SyncFails || f.Stalled {
		c.expect(i)
	}
	return c.control[i].Set(ctx, f)
}

// Settle waits until node i is well or has ended; then it is started.
func (c *cluster) Settle(ctx context.Context, i int) error {
	return proc.Poll(ctx, 200*time.Millisecond, func() error {
		if p := c.proc(i); p.Ended() {
			return c.Start(i)
		}
		p, err := c.control[i].Process(ctx)
		if err != nil {
			return err
		}
		if slices.Contains(p.Troubles, "disk_stalled") || slices.Contains(p.Troubles, "stopped") {
			return fmt.Errorf("it is in trouble: %v", p.Troubles)
		}
		c.forgive(i)
		return nil
	})
}

// Whole is nil while every node votes and answers.
func (c *cluster) Whole(ctx context.Context) error { return c.healthy(ctx) }

// Wipe removes node i's data.
func (c *cluster) Wipe(i int) error {
	if p := c.proc(i); p != nil && !p.Ended() {
		return errors.New("the node runs")
	}
	return os.RemoveAll(c.data(i))
}

// Damage flips a bit or cuts a file. What it does to the log is to what was synced
// before the last append: a last append that is damaged after a crash cannot be told
// from one that the crash cut, and is outside the promise.
func (c *cluster) Damage(i int, kind nemesis.Kind, pick uint64) (what string, sure bool, err error) {
	rng := rand.New(rand.NewPCG(pick, 1))
	snapshot, snapErr := newestSnapshot(c.data(i))
	segment, synced, logErr := lastSegment(c.data(i))
	switch kind {
	case nemesis.FlipSnap:
		if snapErr != nil {
			return "", false, snapErr
		}
		return flip(snapshot, 0, fileSize(snapshot), rng)
	case nemesis.FlipLog:
		if logErr != nil {
			return "", false, logErr
		}
		return flip(segment, walHeader, synced, rng)
	}
	files := []string{filepath.Join(c.data(i), "wal", walMeta)}
	if snapErr == nil {
		files = append(files, snapshot)
	}
	if logErr == nil {
		files = append(files, segment)
	}
	return cut(files[rng.IntN(len(files))], rng)
}

// newestSnapshot is the file with the state of the newest snapshot.
func newestSnapshot(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "snapshots", "*-*-*", "state.bin"))
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(filepath.Dir(f), ".tmp") })
	if err != nil || len(files) == 0 {
		return "", errors.Join(err, errors.New("it has no snapshot yet"))
	}
	return slices.MaxFunc(files, func(a, b string) int { return slices.Compare(numbers(a), numbers(b)) }), nil
}

// numbers are term, index and time in a snapshot's name.
func numbers(file string) []uint64 {
	out := make([]uint64, 3)
	_, _ = fmt.Sscanf(filepath.Base(filepath.Dir(file)), "%d-%d-%d", &out[0], &out[1], &out[2])
	return out
}

// A segment of the log is a header and frames: type, three zeros, and in four
// bytes the length of what follows, up to a multiple of eight.
const (
	walHeader = 32
	walFrame  = 8
	walCommit = 3
	walMeta   = "wal-meta.db"
)

// lastSegment is the file that the log is appended to, and where its last whole
// append begins.
func lastSegment(dir string) (path string, last int64, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
	if err != nil || len(files) == 0 {
		return "", 0, errors.Join(err, errors.New("it has no log"))
	}
	path = slices.Max(files)
	data, err := os.ReadFile(path)
	if err != nil {
		return "", 0, err
	}
	begin := int64(walHeader)
	for at := begin; at+walFrame <= int64(len(data)) && data[at] != 0; {
		n := int64(binary.LittleEndian.Uint32(data[at+4:]))
		commit := data[at] == walCommit
		at += walFrame
		if commit {
			last, begin = begin, at
			continue
		}
		at += (n + walFrame - 1) / walFrame * walFrame
	}
	if last <= walHeader {
		return "", 0, errors.New("its log's last file has no two appends yet")
	}
	return path, last, nil
}

func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

func flip(path string, from, to int64, rng *rand.Rand) (string, bool, error) {
	if to <= from {
		return "", false, errors.New("there is nothing to flip")
	}
	at, bit := from+rng.Int64N(to-from), rng.IntN(8)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", false, err
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	if err == nil {
		b[0] ^= 1 << bit
		_, err = f.WriteAt(b[:], at)
	}
	return fmt.Sprintf("bit %d of byte %d of %s", bit, at, filepath.Base(path)), true, errors.Join(err, f.Close())
}

// cut leaves at least a byte: a file of none is what a crash leaves of one that
// has just been made. The metadata's file may end in pages that are in no use.
func cut(path string, rng *rand.Rand) (string, bool, error) {
	size := fileSize(path)
	if size < 2 {
		return "", false, fmt.Errorf("%s is not there", path)
	}
	to := 1 + rng.Int64N(size-1)
	return fmt.Sprintf("%s of %d bytes is cut to %d", filepath.Base(path), size, to), filepath.Base(path) != walMeta, os.Truncate(path, to)
}

// Refuses starts node i and waits until it ends, as it must if sure, or serves. To
// serve what it cannot trust is a violation, and so is to end without saying which
// file is damaged.
func (c *cluster) Refuses(ctx context.Context, i int, sure bool) (refused bool, err error) {
	before := fileSize(c.logPath(i))
	if err := c.start(i, true); err != nil {
		return false, err
	}
	p := c.proc(i)
	err = proc.Poll(ctx, 50*time.Millisecond, func() error {
		if p.Ended() {
			return nil
		}
		now, err := c.control[i].Process(ctx)
		if err == nil && !now.Serves {
			err = errors.New("it neither serves nor ends")
		}
		return err
	})
	if err != nil {
		return false, err
	}
	if !p.Ended() {
		if sure {
			c.complain("corruption", mesh.Node(i)+" serves on damaged files")
		}
		return false, nil
	}
	said := proc.Tail(c.logPath(i), fileSize(c.logPath(i))-before)
	if !strings.Contains(said, "damaged") && !strings.Contains(said, "remove this node's data directory") {
		c.complain("corruption", mesh.Node(i)+" ended on damaged files without saying so: "+said)
	}
	return true, nil
}
