package main

import (
	"context"
	"crypto/sha256"
	"encoding"
	"fmt"
	"hash"
	"io"

	"github.com/baton-cluster/baton"
)

// digest is a stream handler that tells the SHA-256 of what it reads. It goes on
// wherever its session goes: what it has read it acknowledges, and the hash so far
// is the cookie that its successor gets.
func digest(st *baton.ServerStream) error {
	h := sha256.New()
	if cookie, _ := st.Resumed(); len(cookie) > 0 {
		if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(cookie); err != nil {
			return err
		}
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := st.Read(buf)
		if err == io.EOF {
			_, err = fmt.Fprintf(st, "%x", h.Sum(nil))
			return err
		}
		if err != nil {
			return err // STREAM_MOVED: the session is about to move
		}
		h.Write(buf[:n])
		if err := acknowledge(st, h); err != nil {
			return err
		}
	}
}

func acknowledge(st *baton.ServerStream, h hash.Hash) error {
	cookie, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return err
	}
	return st.Ack(st.ReadOffset(), cookie)
}

// upload writes to a digest stream until stop is closed, and compares hashes.
func upload(ctx context.Context, s *baton.Session, stop chan struct{}) (bytes int, err error) {
	st, err := s.OpenStream(ctx, "digest", nil)
	if err != nil {
		return 0, err
	}
	defer st.Close()
	h, block := sha256.New(), make([]byte, 8<<10)
	for going := true; going; {
		select {
		case <-stop:
			going = false
		default:
			copy(block, fmt.Sprint(bytes))
			h.Write(block)
			n, err := st.Write(block)
			if bytes += n; err != nil {
				return bytes, err
			}
		}
	}
	if err := st.CloseWrite(); err != nil {
		return bytes, err
	}
	told, err := io.ReadAll(st)
	if want := fmt.Sprintf("%x", h.Sum(nil)); err == nil && string(told) != want {
		err = fmt.Errorf("the stream's digest is %s, want %s", told, want)
	}
	return bytes, err
}
