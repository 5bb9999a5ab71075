package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/baton-cluster/baton/wire"
)

const (
	lockFile = "lock"
	nodeFile = "node.json"
)

// Identity is who a data directory belongs to. The id is drawn once, when the
// directory is made, so that a node whose disk was wiped is another node: raft
// must never meet an id that has forgotten its vote.
type Identity struct {
	ID   string `json:"id"` // 16 hexadecimal digits
	Name string `json:"name"`
}

// DirLock holds a data directory for one process. The kernel gives the lock
// back when the process ends, however it ends.
type DirLock struct {
	dir  string
	mu   sync.Mutex
	file *os.File // nil once closed
}

// LockDir makes dir if need be (mode 0700) and locks it. A directory that
// another process holds is refused with UNAVAILABLE.
func LockDir(dir string) (*DirLock, error) {
	if dir == "" {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "a node needs a data directory")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "the data directory %s cannot be made: %v", dir, err)
	}
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "the data directory %s cannot be locked: %v", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, wire.Errorf(wire.Code_UNAVAILABLE,
				"another process is using the data directory %s: stop it, or give this node a directory of its own", dir)
		}
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "the data directory %s cannot be locked: %v", dir, err)
	}
	return &DirLock{dir: dir, file: f}, nil
}

// Dir returns the directory.
func (l *DirLock) Dir() string { return l.dir }

var idPattern = regexp.MustCompile(`^[0-9a-f]{16}$`)

// Identity returns the directory's identity, and makes it if the directory is
// new. A directory of a node with another name is refused with NAME_IN_USE, an
// unreadable identity with INTERNAL.
func (l *DirLock) Identity(name string) (Identity, error) {
	var id Identity
	found, err := readJSON(l.dir, nodeFile, &id)
	if err != nil {
		return Identity{}, wire.Errorf(wire.Code_INTERNAL, "the identity of the data directory is unreadable: %v", err)
	}
	if found {
		if !idPattern.MatchString(id.ID) {
			return Identity{}, wire.Errorf(wire.Code_INTERNAL, "%s holds no node id: restore it, or start with an empty directory",
				filepath.Join(l.dir, nodeFile))
		}
		if name != "" && id.Name != name {
			return Identity{}, wire.Errorf(wire.Code_NAME_IN_USE,
				"the data directory %s belongs to node %q, not to %q: give each node a directory of its own", l.dir, id.Name, name)
		}
		return id, nil
	}
	if strings.TrimSpace(name) == "" {
		return Identity{}, wire.Errorf(wire.Code_BAD_REQUEST, "a new node needs a name")
	}
	var raw [8]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return Identity{}, wire.Errorf(wire.Code_INTERNAL, "no randomness for a node id: %v", err)
	}
	id = Identity{ID: hex.EncodeToString(raw[:]), Name: name}
	if err := writeJSON(l.dir, nodeFile, id); err != nil {
		return Identity{}, wire.Errorf(wire.Code_INTERNAL, "the node's identity cannot be written: %v", err)
	}
	return id, nil
}

// Close gives the directory back. It may be called more than once.
func (l *DirLock) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
