package rpcnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// rawFrame is raw bytes with their length before them.
func rawFrame(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func TestFrameRoundTrip(t *testing.T) {
	var stream []byte
	var want []*wire.PeerHello
	for _, n := range []int{0, 1, 100, frameStepBytes - 1, frameStepBytes, 3*frameStepBytes + 7} {
		m := &wire.PeerHello{ClusterId: bytes.Repeat([]byte{7}, n)}
		want = append(want, m)
		var err error
		if stream, err = AppendFrame(stream, m, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	// One byte a read: a frame must not depend on how the network cuts it.
	r := iotest.OneByteReader(bytes.NewReader(stream))
	var buf []byte
	for i, w := range want {
		body, err := ReadFrame(r, 1<<20, buf)
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		buf = body
		var got wire.PeerHello
		if err := proto.Unmarshal(body, &got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(&got, w) {
			t.Fatalf("frame %d came back different", i)
		}
	}
	if _, err := ReadFrame(r, 1<<20, buf); err != io.EOF {
		t.Fatalf("at the end: %v, want io.EOF", err)
	}
}

func TestFrameTooLarge(t *testing.T) {
	dst := []byte("kept")
	out, err := AppendFrame(dst, &wire.PeerHello{ClusterId: make([]byte, 100)}, 50)
	if wire.CodeOf(err) != wire.Code_FRAME_TOO_LARGE || string(out) != "kept" {
		t.Fatalf("AppendFrame: %q, %v", out, err)
	}
	if _, err := ReadFrame(bytes.NewReader(rawFrame(make([]byte, 51))), 50, nil); wire.CodeOf(err) != wire.Code_FRAME_TOO_LARGE {
		t.Fatalf("ReadFrame: %v", err)
	}
	if body, err := ReadFrame(bytes.NewReader(rawFrame(make([]byte, 50))), 50, nil); err != nil || len(body) != 50 {
		t.Fatalf("ReadFrame of exactly the most: %d bytes, %v", len(body), err)
	}
}

func TestFrameCutShort(t *testing.T) {
	whole := rawFrame(bytes.Repeat([]byte{1}, frameStepBytes+10))
	for _, cut := range []int{1, 3, 4, 5, frameStepBytes, frameStepBytes + 4, len(whole) - 1} {
		if _, err := ReadFrame(bytes.NewReader(whole[:cut]), 1<<20, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v, want io.ErrUnexpectedEOF", cut, err)
		}
	}
}

// A stranger's word about a length must not become our memory.
func TestFrameAllocatesOnlyWhatArrives(t *testing.T) {
	header := binary.BigEndian.AppendUint32(nil, 16<<20)
	r := &largestReader{Reader: bytes.NewReader(header)}
	if _, err := ReadFrame(r, 16<<20, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	if r.largest > frameStepBytes {
		t.Fatalf("offered the network a buffer of %d bytes on an announcement alone", r.largest)
	}
}

// largestReader notes the largest buffer that it was handed.
type largestReader struct {
	io.Reader
	largest int
}

func (c *largestReader) Read(p []byte) (int, error) {
	c.largest = max(c.largest, len(p))
	return c.Reader.Read(p)
}

func TestReadFrameReusesItsBuffer(t *testing.T) {
	data := rawFrame(bytes.Repeat([]byte{9}, 1000))
	r := bytes.NewReader(data)
	buf := make([]byte, 0, 2000)
	if n := testing.AllocsPerRun(100, func() {
		r.Reset(data)
		if _, err := ReadFrame(r, 1<<20, buf); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a frame, want none", n)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{}, 10)
	f.Add(rawFrame(nil), 0)
	f.Add(rawFrame([]byte("hello")), 5)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1}, 1<<20)
	f.Fuzz(func(t *testing.T, data []byte, limit int) {
		if limit < 0 || limit > 1<<24 {
			return
		}
		r := bytes.NewReader(data)
		body, err := ReadFrame(r, limit, nil)
		if err != nil {
			return
		}
		if len(body) > limit {
			t.Fatalf("%d bytes got through a limit of %d", len(body), limit)
		}
		if !bytes.Equal(rawFrame(body), data[:len(data)-r.Len()]) {
			t.Fatal("the frame is not what was read")
		}
	})
}
