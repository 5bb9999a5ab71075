package rpcnet

import (
	"encoding/binary"
	"io"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

const (
	// frameHeaderBytes precede each frame: its length, big-endian.
	frameHeaderBytes = 4
	// frameStepBytes is how far ahead of the bytes that have arrived a reader
	// allocates. A stranger who announces a large frame and sends nothing costs
	// no more than this.
	frameStepBytes = 64 << 10
)

// ReadFrame reads one frame: four bytes of length, big-endian, then as many
// bytes. It returns the body, in buf's memory where that suffices, so the body
// is valid until buf is used again. The length may be zero.
//
// Errors: FRAME_TOO_LARGE if more than max bytes are announced (nothing is
// allocated and r stands behind the header: close it), io.EOF if r ends between
// frames, io.ErrUnexpectedEOF if it ends within one, else r's own.
func ReadFrame(r io.Reader, max int, buf []byte) ([]byte, error) {
	// The header is read into buf too, so that it does not escape to the heap.
	buf = slices.Grow(buf[:0], frameHeaderBytes)[:frameHeaderBytes]
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, err
	}
	announced := binary.BigEndian.Uint32(buf)
	if uint64(announced) > uint64(max) {
		return nil, wire.Errorf(wire.Code_FRAME_TOO_LARGE, "a frame of %d bytes was announced; at most %d are allowed here", announced, max)
	}
	size := int(announced)
	buf = buf[:0]
	for len(buf) < size {
		step := min(size-len(buf), frameStepBytes)
		at := len(buf)
		buf = slices.Grow(buf, step)[:at+step]
		if _, err := io.ReadFull(r, buf[at:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return buf, nil
}

// AppendFrame appends m as one frame to dst and returns the extended slice.
// Over max bytes it returns dst unchanged, and FRAME_TOO_LARGE.
func AppendFrame(dst []byte, m proto.Message, max int) ([]byte, error) {
	size := proto.Size(m)
	if size > max {
		return dst, wire.Errorf(wire.Code_FRAME_TOO_LARGE, "a message of %d bytes does not fit a frame of at most %d; send less at a time", size, max)
	}
	out := slices.Grow(dst, frameHeaderBytes+size)
	out = binary.BigEndian.AppendUint32(out, uint32(size))
	body := len(out)
	// Size has just been computed, and is most of the cost of encoding.
	out, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(out, m)
	if err != nil {
		return dst, err
	}
	if len(out)-body != size {
		return dst, wire.Errorf(wire.Code_INTERNAL, "a message changed while it was being encoded")
	}
	return out, nil
}
