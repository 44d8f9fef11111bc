/* In which number format transformed tiles and weights are multiplied; sums are always float32.

   ELEMENT: how one number is kept.  TOGETHER: input channels that one instruction multiplies.
   KEEP(p, x): store a vector of float32 as elements.
   WEIGHTS: a vector of them.  SPREAD, VALUE(v): the elements at v of one tile, for all outputs.
   MULTIPLY(sum, w, x): add their products to the sums of as many outputs as there are lanes. */

#undef ELEMENT
#undef TOGETHER
#undef KEEP
#undef WEIGHTS
#undef SPREAD
#undef VALUE
#undef MULTIPLY

#ifdef BFLOAT16
#define ELEMENT uint16_t
#define TOGETHER 2
#define KEEP(p, x) (*(__m256bh *)(p) = _mm512_cvtneps_pbh((__m512)(x)))
#define WEIGHTS __m512bh
#define SPREAD __m512bh
#define VALUE(v) ((__m512bh)_mm512_set1_epi32(*(const PAIR *)(v)))
#define MULTIPLY(sum, w, x) ((VECTOR)_mm512_dpbf16_ps((__m512)(sum), (w), (x)))
#else
#define ELEMENT float
#define TOGETHER 1
#define KEEP(p, x) (*(VECTOR *)(p) = (x))
#define WEIGHTS VECTOR
#define SPREAD float
#define VALUE(v) (*(v))
#define MULTIPLY(sum, w, x) ((sum) + (w) * (x))
#endif
