package baton

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

const (
	// backupPartBytes is what one call brings of a backup.
	backupPartBytes = 1 << 20
	// backupsMax bounds the backups that a node makes at once, and backupIdle how
	// long one waits for its next part to be asked for.
	backupsMax = 2
	backupIdle = time.Minute
)

// backups are those that operators are fetching from this node. Each is a file
// without a name, so that nothing is left of it when the process ends.
type backups struct {
	n    *Node
	mu   sync.Mutex
	last uint64
	held map[uint64]*backup
}

type backup struct {
	file  *os.File
	timer seam.Timer
}

type backupRef struct {
	ID   uint64 `json:"id"`
	Size int64  `json:"size"`
}

type backupPart struct {
	ID     uint64 `json:"id"`
	Offset int64  `json:"offset"`
}

// open makes a backup of the state as it is now, with all in it that was
// acknowledged before.
func (b *backups) open(ctx context.Context, _ struct{}) (ref backupRef, err error) {
	if err := b.n.current(ctx); err != nil {
		return ref, err
	}
	b.mu.Lock()
	full := len(b.held) >= backupsMax
	b.mu.Unlock()
	if full {
		return ref, wire.Errorf(wire.Code_OVERLOADED, "%d backups are being fetched from this node: try again in a minute, or ask another", backupsMax)
	}
	f, err := os.CreateTemp(b.n.cfg.Data, "backup-*")
	if err != nil {
		return ref, wire.Errorf(wire.Code_INTERNAL, "no room for a backup: %v", err)
	}
	_ = os.Remove(f.Name())
	err = b.n.cluster.FSM().Backup(f)
	if err == nil {
		ref.Size, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		_ = f.Close()
		return ref, wire.Errorf(wire.Code_INTERNAL, "the backup cannot be written: %v", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held == nil {
		b.held = map[uint64]*backup{}
	}
	b.last++
	ref.ID = b.last
	b.held[ref.ID] = &backup{f, b.expire(ref.ID)}
	return ref, nil
}

func (b *backups) expire(id uint64) seam.Timer {
	return b.n.cfg.Clock.AfterFunc(backupIdle, func() { b.drop(id) })
}

func (b *backups) drop(id uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if open := b.held[id]; open != nil {
		open.timer.Stop()
		_ = open.file.Close()
		delete(b.held, id)
	}
}

// close drops all, when the node stops.
func (b *backups) close() {
	b.mu.Lock()
	ids := make([]uint64, 0, len(b.held))
	for id := range b.held {
		ids = append(ids, id)
	}
	b.mu.Unlock()
	for _, id := range ids {
		b.drop(id)
	}
}

// part returns some bytes of a backup; none at its end, where it is dropped.
func (b *backups) part(_ context.Context, body []byte) ([]byte, error) {
	var req backupPart
	if err := json.Unmarshal(body, &req); err != nil || req.Offset < 0 {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the request cannot be read")
	}
	b.mu.Lock()
	open := b.held[req.ID]
	if open == nil {
		b.mu.Unlock()
		return nil, wire.Errorf(wire.Code_UNKNOWN_REQUEST, "there is no such backup here, or it has waited for too long: begin anew")
	}
	open.timer.Stop()
	open.timer = b.expire(req.ID)
	buf := make([]byte, backupPartBytes)
	got, err := open.file.ReadAt(buf, req.Offset)
	b.mu.Unlock()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, wire.Errorf(wire.Code_INTERNAL, "the backup cannot be read: %v", err)
	}
	if got == 0 {
		b.drop(req.ID)
	}
	return buf[:got], nil
}

// SaveSnapshot writes a backup of the whole cluster's state to w: everything that
// was acknowledged before the call. It holds the sessions' state, and of secrets
// and keys nothing that is of use without the cluster's PKI files. The backup is
// checksummed: InspectSnapshot verifies it. An error leaves w with a part of it.
func (a *Admin) SaveSnapshot(ctx context.Context, w io.Writer) (bytes int64, err error) {
	for _, addr := range a.cfg.Addrs {
		var out []byte
		if out, err = a.peers.Call(ctx, addr, "backup", nil); err == nil {
			var ref backupRef
			if err := json.Unmarshal(out, &ref); err != nil {
				return 0, err
			}
			return a.fetchBackup(ctx, addr, ref, w)
		}
		if code := wire.CodeOf(err); code != wire.Code_UNAVAILABLE && code != wire.Code_NOT_LEADER || ctx.Err() != nil {
			break
		}
	}
	return 0, noLeader(err)
}

func (a *Admin) fetchBackup(ctx context.Context, addr string, ref backupRef, w io.Writer) (at int64, err error) {
	for {
		body, err := marshal(backupPart{ref.ID, at})
		if err != nil {
			return at, err
		}
		part, err := a.peers.Call(ctx, addr, "backup-part", body)
		if err != nil {
			return at, err
		}
		if len(part) == 0 {
			if at != ref.Size {
				return at, wire.Errorf(wire.Code_SNAPSHOT_BAD, "the backup has %d bytes, %d were announced", at, ref.Size)
			}
			return at, nil
		}
		if _, err := w.Write(part); err != nil {
			return at, err
		}
		at += int64(len(part))
	}
}

// newRoot makes the keys of a new cluster; see cluster.Keys.
func newRoot(id interface {
	NewRoot(clusterID []byte, generation uint64, rand io.Reader) ([]byte, error)
}) func([]byte, uint64) ([]byte, error) {
	return func(clusterID []byte, generation uint64) ([]byte, error) {
		return id.NewRoot(clusterID, generation, rand.Reader)
	}
}
