package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// Bbolt's file begins with two meta pages, written in turns: 16 bytes of page
// header, then, in the machine's byte order, magic, version, page size, flags
// (four bytes each), root page and sequence, free list page, pages in use,
// transaction (eight each), and FNV-1a over all of that.
const (
	boltMagic       = 0xED0CDAED
	boltPageHeader  = 16
	boltMetaBytes   = 64
	boltPageSizeMin = 512
	boltPageSizeMax = 64 << 10
)

// checkBoltLength refuses a file that is shorter than its newest meta page says:
// bbolt would fault while it walks the mapping, on a goroutine of its own, where
// nobody can catch it. A file that is not there, or is empty, will be made.
func checkBoltLength(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	// Where the second one is depends on the page size, which only a good first
	// one tells; else it is a power of two.
	var newest boltMeta
	for at := int64(0); at <= boltPageSizeMax; at = max(2*at, boltPageSizeMin) {
		var raw [boltMetaBytes]byte
		if _, err := f.ReadAt(raw[:], at+boltPageHeader); err != nil {
			if errors.Is(err, io.EOF) {
				break
			}
			return err
		}
		if m, ok := parseBoltMeta(raw); ok && (at == 0 || at == m.pageSize) && m.txid >= newest.txid {
			newest = m
		}
	}
	switch {
	case newest.pageSize == 0:
		return errors.New("it is not a bbolt file, or its head is damaged")
	case info.Size()/newest.pageSize < newest.pages:
		return fmt.Errorf("it has %d bytes, but %d pages of %d are in use: it was cut short", info.Size(), newest.pages, newest.pageSize)
	}
	return nil
}

type boltMeta struct {
	pageSize, pages int64
	txid            uint64
}

func parseBoltMeta(raw [boltMetaBytes]byte) (boltMeta, bool) {
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(raw[at:]) }
	u64 := func(at int) uint64 { return binary.NativeEndian.Uint64(raw[at:]) }
	h := fnv.New64a()
	_, _ = h.Write(raw[:56])
	m := boltMeta{pageSize: int64(u32(8)), pages: int64(u64(40)), txid: u64(48)}
	ok := u32(0) == boltMagic && u64(56) == h.Sum64() && m.pages > 0 &&
		m.pageSize >= boltPageSizeMin && m.pageSize <= boltPageSizeMax
	return m, ok
}
