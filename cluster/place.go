package cluster

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/baton-cluster/baton/wire"
)

// placeFile remembers where the directory was last used.
const placeFile = "place.json"

// placeData is what placeFile holds of a wire.Place.
type placeData struct {
	Boot   string `json:"boot"`
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

// Place says where this process holds its directory. It is what a restart proves
// its predecessor's end with: the kernel gives the lock on one file to one
// process at a time, so whoever holds the same file (device and inode), on a file
// system of this machine's own, under the same boot of the kernel, came after the
// former holder. Where the file system is not known to be local, or the boot has
// no name, Local is false: nothing is proven. UNAVAILABLE if the lock was closed.
func (l *DirLock) Place() (*wire.Place, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "the data directory %s is no longer held", l.dir)
	}
	return placeOf(l.file)
}

func placeOf(f *os.File) (*wire.Place, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "the lock file %s cannot be examined: %v", f.Name(), err)
	}
	boot := bootID()
	return &wire.Place{
		Boot: boot, Device: uint64(st.Dev), Inode: st.Ino, Local: boot != "" && localFileSystem(int(f.Fd())),
	}, nil
}

// Copied reports whether the directory was used before, and by another lock file
// than this: it is a copy, or was moved or restored from one. The original may be
// in use elsewhere. A device's number may change when the machine starts again,
// an inode's may not.
func (l *DirLock) Copied() (bool, error) {
	now, err := l.Place()
	if err != nil {
		return false, err
	}
	var last placeData
	found, err := readJSON(l.dir, placeFile, &last)
	if err != nil {
		return false, wire.Errorf(wire.Code_INTERNAL, "where the data directory was last used is unreadable: %v", err)
	}
	if !found {
		return false, nil
	}
	return last.Inode != now.GetInode() || last.Boot == now.GetBoot() && last.Device != now.GetDevice(), nil
}

// Settle remembers the directory's present place.
func (l *DirLock) Settle() error {
	now, err := l.Place()
	if err != nil {
		return err
	}
	next := placeData{Boot: now.GetBoot(), Device: now.GetDevice(), Inode: now.GetInode()}
	var last placeData
	if found, err := readJSON(l.dir, placeFile, &last); err == nil && found && last == next {
		return nil
	}
	if err := writeJSON(l.dir, placeFile, next); err != nil {
		return wire.Errorf(wire.Code_UNAVAILABLE, "the data directory %s cannot be written: %v", l.dir, err)
	}
	return nil
}
