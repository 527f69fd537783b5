"""Any student: what the trainer, evaluation and generation ask of it is the same for all."""

from student.model.transplant.student import TransplantStudent
from student.model.xlstm import XLSTMStudent

Student = XLSTMStudent | TransplantStudent
