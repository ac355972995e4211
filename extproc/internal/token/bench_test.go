package token

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// texts for benchmarks, made up: prose of words that follow Zipf's law, code,
// and Chinese.
func benchTexts() map[string][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	return map[string][]byte{"prose": prose(rng, 1<<20), "code": code(rng, 1<<20), "chinese": chinese(rng, 1<<20)}
}

func prose(rng *rand.Rand, size int) []byte {
	syllables := strings.Fields("the re mill race wa ter ing er tion ment o ver un der ly stream co un ter al ness ed pro con per form able in out side work day light")
	words := make([]string, 20000)
	for i := range words {
		for range 1 + rng.IntN(4) {
			words[i] += syllables[rng.IntN(len(syllables))]
		}
	}
	zipf := rand.NewZipf(rng, 1.1, 4, uint64(len(words)-1))
	var out strings.Builder
	for out.Len() < size {
		out.WriteString(words[zipf.Uint64()])
		switch rng.IntN(12) {
		case 0:
			out.WriteString(", ")
		case 1:
			out.WriteString(".\n")
		default:
			out.WriteByte(' ')
		}
	}
	return []byte(out.String())
}

func code(rng *rand.Rand, size int) []byte {
	var out strings.Builder
	for i := 0; out.Len() < size; i++ {
		fmt.Fprintf(&out, "\tif v%d, err := s.read%x(ctx, %q, %d); err != nil {\n\t\treturn nil, fmt.Errorf(\"read %%d: %%w\", v%d, err)\n\t}\n",
			i%97, rng.IntN(1<<12), fmt.Sprint("key-", rng.IntN(1<<16)), rng.IntN(1<<20), i%97)
	}
	return []byte(out.String())
}

func chinese(rng *rand.Rand, size int) []byte {
	var out strings.Builder
	for out.Len() < size {
		for range 2 + rng.IntN(12) {
			out.WriteRune(rune(0x4e00 + rng.IntN(3000)))
		}
		out.WriteString("，")
	}
	return []byte(out.String())
}

// BenchmarkCount counts texts not seen before (row P8 of `make bench`); words in
// them come back, and the word cache is part of the counter. MB/cpu-s is by the CPU time that
// was taken, which others on the machine have little to do with.
func BenchmarkCount(b *testing.B) {
	m := smol(b)
	for name, text := range benchTexts() {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			before := cpu(b)
			for b.Loop() {
				m.bpe.cache = newCache()
				m.Count(text)
			}
			b.ReportMetric(float64(len(text))*float64(b.N)/1e6/(cpu(b)-before).Seconds(), "MB/cpu-s")
		})
	}
}

// cpu is the CPU time of this process until now.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkMerge is Count with the cache of no use.
func BenchmarkMerge(b *testing.B) {
	m := smol(b)
	for name, text := range benchTexts() {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				for rest := text; len(rest) > 0; {
					n := m.bpe.split.next(rest)
					m.bpe.merge(rest[:n])
					rest = rest[n:]
				}
			}
		})
	}
}

func BenchmarkChat(b *testing.B) {
	m := smol(b)
	for _, size := range []int{2 << 10, 64 << 10, 400 << 10} {
		c := talk(b, size)
		b.Run(fmt.Sprintf("%dKiB/seen", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				m.CountChat(c)
			}
		})
		b.Run(fmt.Sprintf("%dKiB/new", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			for i := 0; b.Loop(); i++ {
				for j := range c.Messages { // another first word: the memo doesn't know it
					copy(c.Messages[j].Content, strconv.Itoa(i))
				}
				m.CountChat(c)
			}
		})
	}
}

// talk is a conversation of messages of 1 KiB.
func talk(tb testing.TB, size int) *Chat {
	tb.Helper()
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	text := prose(rand.New(rand.NewPCG(3, 4)), size)
	var body struct {
		Messages []message `json:"messages"`
	}
	for i := 0; i+1024 <= len(text); i += 1024 {
		body.Messages = append(body.Messages, message{[]string{"user", "assistant"}[i/1024%2], string(text[i : i+1024])})
	}
	body.Messages = append(body.Messages, message{"user", "And then?"})
	raw, err := json.Marshal(body)
	if err != nil {
		tb.Fatal(err)
	}
	return chatOf(tb, raw)
}

func BenchmarkLoad(b *testing.B) {
	smol(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Load(modelPath()); err != nil {
			b.Fatal(err)
		}
	}
}

func newRand() *rand.Rand { return rand.New(rand.NewPCG(8, 8)) }
